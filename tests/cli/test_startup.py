"""Nothing heavy is imported before it is needed, and help is readable at 80 columns."""

import subprocess
import sys

import numpy as np
import pytest

from sapp_cli.cli.main import app
from tests.checkpoint.files import save_floats
from tests.report.outputs import write_output

HEAVY = {"torch", "transformers", "accelerate", "datasets", "matplotlib", "jinja2", "scipy"}
PROGRAM = """
import sys
sys.argv = ["sapp", *sys.argv[1:]]
from sapp_cli.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def modules_after(*arguments):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stderr.split())


def test_help_imports_nothing_heavy_not_even_numpy():
    assert not modules_after("--help") & {*HEAVY, "pydantic", "numpy", "yaml"}
    assert not modules_after("report", "--help") & {
        *HEAVY,
        "numpy",
        "yaml",
    }  # typer itself may take pydantic for a verb


@pytest.mark.parametrize("verb", ["report", "check"])
def test_reading_a_checkpoint_imports_nothing_heavy(tmp_path, verb):
    found = modules_after(verb, write_output(tmp_path / "out"))
    assert "numpy" in found
    assert not found & {*HEAVY, "sapp_cli.recipe.schema", "sapp_cli.pipeline"}
    plain = save_floats(tmp_path / "m.safetensors", **{"a.weight": np.ones((2, 2))})
    assert not modules_after(verb, plain) & HEAVY


@pytest.mark.parametrize("line", ["sapp prune --set prune.m", "sapp plan --set prune.method=", "sapp plan -r "])
def test_a_tab_imports_nothing_heavy(monkeypatch, line):
    monkeypatch.setenv("_SAPP_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    assert not modules_after() & {*HEAVY, "sapp_cli.recipe.schema"}


EXAMPLES = {
    "report": """
        sapp report ./my-model-sparse --sort size
        sapp report any.safetensors --block-size 32 --json
        sapp report ./my-model-sparse --against ./my-model --html report.html
    """,
    "check": """
        sapp check ./my-model-sparse --min-sparsity 0.8 --max-drop 0.01
        sapp check ./my-model-sparse --max-size 60MB --json > check.json
    """,
    "export": """
        sapp export ./my-model-sparse -o ./my-model-bsr --layout bsr
        sapp export pruned.safetensors -o out --layout both --block-size 32
        sapp export ./my-model-sparse -o model.onnx --format onnx
    """,
}
VERBS = ["", *(command.name for command in app.registered_commands), "recipes", "recipes ls", "recipes cp"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns_and_keeps_the_lines_of_examples(sapp, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    ran = sapp(*verb.split(), "--help")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert max(map(len, lines)) <= 80
    assert "\\b" not in ran.out
    assert "\b" not in ran.out
    assert len(lines) <= 50  # two screens of 24 lines, and the prompt
    if "Examples:" in lines:
        assert all(line.startswith("  sapp ") for line in lines[lines.index("Examples:") + 1 :] if line)
    if verb in ("report", "check", "export"):
        examples = [line.strip() for line in lines if line.strip().startswith(f"sapp {verb} ")]
        assert examples == [line.strip() for line in EXAMPLES[verb].strip().splitlines()]


def test_flags_stand_in_groups_with_their_texts_beside_them(sapp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = sapp("recipes", "cp", "--help").out
    assert (
        page
        == """\
Usage: sapp recipes cp [OPTIONS] {NAME} [DESTINATION]

Copy a shipped recipe, and the Python file it names, to change it.

Arguments:
  NAME             As `sapp recipes ls` shows it.
  DESTINATION      Folder, or name of the new .yaml file.

Options:
      --overwrite  Replace earlier copies that are there.
  -h, --help       Show this message and exit.

Output:
  -q, --quiet      Errors only on stderr.
  -v, --verbose    More about what is read and done, on stderr.
      --json       One JSON document on stdout.

Examples:
  sapp recipes cp digits my-recipe.yaml

"""
    )


def test_every_flag_and_verb_is_on_its_page(sapp, monkeypatch):
    import typer.main

    monkeypatch.setenv("COLUMNS", "60")
    pages = [((), typer.main.get_command(app))]
    for words, command in pages:
        names = {row.split()[0] for row in sapp(*words, "--help").out.splitlines() if row.strip()}
        said = sapp(*words, "--help").out
        pages += [((*words, name), inner) for name, inner in getattr(command, "commands", {}).items()]
        assert set(getattr(command, "commands", {})) <= names
        for parameter in command.params:
            word = parameter.metavar if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
            assert word in said
    assert len(pages) > 12


@pytest.mark.parametrize("verb", [[], ["prune"], ["recipes", "cp"]])
def test_help_can_be_asked_for_in_words(sapp, verb):
    asked, shown = sapp("help", *verb), sapp(*verb, "--help")
    assert asked == shown
    assert asked.code == 0
    assert f"Usage: sapp{''.join(f' {word}' for word in verb)} " in asked.out
