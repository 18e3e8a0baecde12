"""Measured speed in an output: what is written, what is left alone, and that figures never outlive their weights."""

import hashlib
import json
import shutil

import pytest

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.errors import CheckpointError, UsageError
from sapp_cli.outputs.speed_section import card_section, save_speed, saving_place, with_section
from sapp_cli.report.gallery import Gallery
from sapp_cli.report.html import SPEED_BEGIN, SPEED_END, write_html
from sapp_cli.report.inspect import layer_facts
from sapp_cli.report.measure import measure
from sapp_cli.report.run import read_run
from sapp_cli.report.speed import read_speed, speed_of
from tests.report.outputs import write_output


def result(dense=0.01, sparse=0.002):
    """A result of `sapp bench`, as JSON."""
    times = {"dense": {"median": dense, "spread": 2e-4}, "block_sparse": {"median": sparse, "spread": 1e-4}}
    return {
        "version": 1,
        "checkpoint": "/home/me/out",
        "machine": {"text": "A <CPU>, 1 thread, 2026-11-20"},
        "settings": {"bf16": False},
        "inputs": "random token ids",
        "end_to_end": [
            {"batch_size": 1, "sequence_length": 1500, **times},
            {"batch_size": 8, "sequence_length": None, **times},
        ],
        "layers": [
            {
                "names": ["first", "second"],
                "matrix": [4, 6],
                "block": [2, 2],
                "blocks": 6,
                "kept_blocks": 2,
                "batch_size": 1,
                "sequence_length": None,
                "rows": 1500,
                "way": "kernel",
                **times,
            }
        ],
        "weight_bytes": {"dense": 1000, "block_sparse": 400},
        "weights_sha256": {},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output with a card and a page."""
    folder = write_output(tmp_path_factory.mktemp("speed") / "out")
    (folder / "README.md").write_text("# Mine\n\nText of mine.\n\n## How to load it\n\nSo.\n")
    checkpoint, gallery = open_checkpoint(folder), Gallery()
    report = measure(checkpoint, layer_facts(checkpoint, None), gallery.add)
    write_html(folder / "sparsity.html", "out", report, gallery, read_run(folder))
    return folder


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


SECTION = """\
## Speed

Measured by `sapp bench`: A <CPU>, 1 thread, 2026-11-20.
fp32, random token ids; medians, dense and block-sparse taken in turns.

| whole model | dense | block-sparse | speed-up | inputs a second |
|---|---|---|---|---|
| batch 1, 1,500 tokens | 10.0 ms ± 100 µs | 2.00 ms ± 50.0 µs | 5.00× | 100 → 500 |
| batch 8 | 10.0 ms ± 100 µs | 2.00 ms ± 50.0 µs | 5.00× | 800 → 4,000 |

Weights in memory: 1.00 kB dense, 400 B block-sparse. `bench.json` has every layer.
"""


def test_card_page_and_json_get_the_figures_and_nothing_else_changes(out, sapp):
    page = (out / "sparsity.html").read_text()
    assert f"{SPEED_BEGIN}\n{SPEED_END}" in page
    assert save_speed(out, result()) == [
        f"wrote {out}/bench.json",
        f"wrote the section on speed of {out}/README.md",
        f"wrote the section on speed of {out}/sparsity.html",
    ]
    saved = json.loads((out / "bench.json").read_text())
    assert saved["checkpoint"] == "out"  # no path of this machine
    assert saved["weights_sha256"] == {
        file: hashlib.sha256((out / file).read_bytes()).hexdigest()
        for file in ("model.safetensors", "sparse/model.safetensors")
    }
    digest = hashlib.sha256(SECTION.encode()).hexdigest()[:16]
    section = f"<!-- sapp bench: begin {digest} -->\n{SECTION}<!-- sapp bench: end -->\n"
    assert (out / "README.md").read_text() == f"# Mine\n\nText of mine.\n\n{section}\n## How to load it\n\nSo.\n"
    now = (out / "sparsity.html").read_text()
    before, _, rest = now.partition(SPEED_BEGIN)
    shown, _, after = rest.partition(SPEED_END)
    assert before + SPEED_BEGIN + "\n" + SPEED_END + after == page
    assert "A &lt;CPU&gt;, 1 thread" in shown
    assert "5.00×" in shown
    assert "and 1 alike" in shown
    assert "33.3 %" in shown
    assert sapp("check", out).code == 0
    assert sapp("report", out, "--html", out / "again.html").code == 0
    assert (out / "again.html").read_text() == now


def test_measuring_again_replaces_the_figures(out):
    save_speed(out, result())
    first = (out / "README.md").read_text()
    save_speed(out, result(sparse=0.001))
    second = (out / "README.md").read_text()
    assert "| 10.0× |" not in second
    assert second.count("| 10.00× |") == 2
    assert second.count("sapp bench: begin") == 1
    assert (out / "sparsity.html").read_text().count("<h2>Speed</h2>") == 1
    save_speed(out, result())
    assert (out / "README.md").read_text() == first


def test_text_around_the_section_is_the_owners(out):
    save_speed(out, result())
    card = out / "README.md"
    card.write_text("Above.\n\n" + card.read_text().replace("Text of mine.", "Other text.") + "Below.\n")
    save_speed(out, result(sparse=0.001))
    text = card.read_text()
    assert text.startswith("Above.\n\n# Mine\n\nOther text.\n")
    assert text.endswith("So.\nBelow.\n")


def test_a_section_edited_by_hand_stays(out):
    save_speed(out, result())
    card = out / "README.md"
    edited = card.read_text().replace("5.00×", "much")
    card.write_text(edited)
    lines = save_speed(out, result(sparse=0.001))
    assert lines[1] == (
        f"{card} stays as it is: its section on speed was edited; remove the section to have it written again"
    )
    assert card.read_text() == edited
    assert json.loads((out / "bench.json").read_text())["end_to_end"][0]["block_sparse"]["median"] == 0.001
    card.write_text(edited.replace("<!-- sapp bench: end -->\n", ""))
    assert "stays as it is" in save_speed(out, result())[1]


def test_cards_without_the_heading_and_without_anything():
    section = card_section(speed_of(result()))
    assert with_section("# Mine\n\n\n", section) == f"# Mine\n\n{section}"
    assert with_section("", section) == section


def test_missing_and_foreign_card_and_page(out):
    (out / "README.md").unlink()
    (out / "sparsity.html").write_text("<p>a page of mine</p>")
    lines = save_speed(out, result())
    assert lines[1:] == [
        f"{out}/README.md is not there; the figures are in bench.json",
        f"{out}/sparsity.html stays as it is, it has no place for speed; `sapp report {out} --html {out}/sparsity.html` "
        "makes it anew",
    ]
    assert (out / "sparsity.html").read_text() == "<p>a page of mine</p>"
    (out / "sparsity.html").unlink()
    assert save_speed(out, result())[2].startswith(f"{out}/sparsity.html is not there; `sapp report {out} --html")


@pytest.mark.parametrize("file", ["sparse/model.safetensors", "model.safetensors"])
def test_figures_are_of_the_weights_that_were_measured(out, file):
    save_speed(out, result())
    assert read_speed(out).is_of(out)
    change_a_sign(out / file)
    assert not read_speed(out).is_of(out)
    change_a_sign(out / file)
    assert read_speed(out).is_of(out)


def test_figures_of_other_weights_are_not_shown(out, sapp, tmp_path):
    save_speed(out, result())
    change_a_sign(out / "model.safetensors")
    ran = sapp("report", out, "--html", tmp_path / "page.html")
    assert ran.code == 0
    assert f"{out}/bench.json was measured on other weights; the page leaves it out\n" in ran.err
    assert "<h2>Speed</h2>" not in (tmp_path / "page.html").read_text()


def change_a_sign(file):
    """Of the last number in it."""
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))


def test_one_layout_of_the_same_weights_is_enough(out):
    save_speed(out, result())
    shutil.rmtree(out / "sparse")
    assert read_speed(out).is_of(out)
    shutil.copy(out / "model.safetensors", out / "another.safetensors")
    assert not read_speed(out).is_of(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"end_to_end": [{}]},
            r"is no result of `sapp bench --save` \('sequence_length'\); remove it, or measure again",
        ),
        ({"layers": 3}, "is no result of"),
        ({"weights_sha256": None}, "is no result of"),
    ],
)
def test_a_damaged_result_is_said_to_be_one(out, change, message):
    (out / "bench.json").write_text(json.dumps({**result(), **change}))
    with pytest.raises(CheckpointError, match=message):
        read_speed(out)
    bad = result(sparse=float("nan"))
    with pytest.raises(ValueError, match="a time is no number of seconds"):
        speed_of(bad)


def test_a_bench_json_of_somebody_else_is_not_read(tmp_path):
    (tmp_path / "bench.json").write_text("{}")
    assert read_speed(tmp_path) is None
    assert read_speed(None) is None


def test_where_a_result_can_go(out, tmp_path):
    assert saving_place(out) == out
    assert saving_place(out / "sparse").resolve() == out.resolve()
    shutil.copy(out / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(
        UsageError, match=r"alone\.safetensors: --save puts the result into an output of sapp, and this"
    ):
        saving_place(tmp_path / "alone.safetensors")


def test_a_real_measurement_is_saved(sapp, digits, tmp_path):
    out = tmp_path / "out"
    recipe = digits / "recipe.yaml"
    ran = sapp("prune", digits / "dense.safetensors", "-r", recipe, "-o", out, "--steps", "20", "-q")
    assert ran.code == 0, ran.err
    ran = sapp("bench", out, "-r", recipe, "--batch-size", "4", "--seconds", "0", "--save", "--json")
    assert ran.code == 0, ran.err
    saved = json.loads((out / "bench.json").read_text())
    assert saved.items() >= {**ran.json, "checkpoint": "out"}.items()
    assert read_speed(out).is_of(out)
    assert "| batch 4 |" in (out / "README.md").read_text()
    assert "<h2>Speed</h2>" in (out / "sparsity.html").read_text()
    assert sapp("check", out).code == 0
    # What is made of it has weights of its own.
    assert sapp("export", out, "-o", tmp_path / "exported", "--layout", "dense").code == 0
    assert not (tmp_path / "exported" / "bench.json").exists()
