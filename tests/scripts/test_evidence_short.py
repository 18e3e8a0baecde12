"""The study of short runs: its commands are those of the studies, its rows by hand."""

from scripts.evidence import studies
from scripts.evidence_short import CELLS, command, line, with_section


def row(method, mean, std):
    return {"method": method, "mean": mean, "std": std}


def table(*rows, higher=True):
    dense = {"value": 0.9722}
    return {"metric": "accuracy", "higher_is_better": higher, "dense": dense, "rows": list(rows)}


def test_a_command_is_the_study_with_another_length_and_rate():
    known = studies()
    for name in CELLS:
        words = command(known[name], 40, "5e-4")
        assert words[2] == known[name].checkpoint and words[words.index("--steps") + 1] == "40"
        assert words[-1] == "optimizer.lr=5e-4"  # after the study's own settings, so that it wins


def test_behind_means_by_more_than_the_spread():
    gradual, magnitude = row("gradual-magnitude", 0.94, 0.04), row("magnitude", 0.5, 0.1)
    # The pooled deviation of 0.03 and 0.04 is 0.0354: 0.92 is within it, 0.90 is not.
    within = line("digits-mlp", 40, "5e-4", table(row("default", 0.92, 0.03), gradual, magnitude))
    assert within == ("| digits-mlp | accuracy | 0.9722 | 40 | 5e-4 | 0.92 ± 0.03 | 0.94 ± 0.04 | 0.5 ± 0.1 | no |")
    assert line("digits-mlp", 40, "5e-4", table(row("default", 0.9, 0.03), gradual, magnitude)).endswith("| yes |")
    lower = table(row("default", 0.9, 0.03), gradual, magnitude, higher=False)
    assert line("digits-mlp", 40, "5e-4", lower).endswith("| yes |")  # magnitude has 0.5
    failed = table(row("default", None, None), gradual, magnitude)
    assert line("digits-mlp", 40, "5e-4", failed).endswith("| failed | 0.94 ± 0.04 | 0.5 ± 0.1 | yes |")


def test_the_section_takes_the_place_of_the_old_one():
    page = "# Evidence\n\n## Short runs\n\nold\n\n## Later\n\ntext\n"
    assert with_section(page, "## Short runs\n\nnew\n") == "# Evidence\n\n## Short runs\n\nnew\n\n## Later\n\ntext\n"
    assert with_section("# Evidence\n", "## Short runs\n\nnew\n") == "# Evidence\n\n## Short runs\n\nnew\n"
