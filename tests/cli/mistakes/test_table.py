"""Every mistake in table/ ends as the table says: exit code, whole message, nothing written, nothing on stdout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from scripts.make_checkpoints import make_bert, make_gpt2
from tests.cli.mistakes.endings import matches, run
from tests.cli.mistakes.messages import messages
from tests.cli.mistakes.setups import lay_out
from tests.cli.mistakes.test_python import SAID_BY_PYTHON
from tests.cli.mistakes.worlds import WORLDS

TABLE = Path(__file__).with_name("table")
HERE = "HERE"  # the current folder, where a message names it
GATE_NOT_MET = 3  # then stdout has a line for each gate

ELSEWHERE = {
    # what another machine, or another version of a library, would say
    "torch.compile needs the package triton": "a GPU",
    "of this machine has no GPU": "a GPU",
    "does not go with weights spread by FSDP": "several GPUs",
    "quantized weights are not supported; start": "a torch that still makes quantized tensors",
    "torch cannot compile this model": "a minute of compiling; tests/training/test_compilation.py has it",
    # what is said after seconds of other lines; tests/comparing/test_runs.py has it, whole
    " cells are done, the same command goes on": "a signal",
    # what from_pretrained of transformers says; tests/opening/test_from_pretrained.py has both
    " has no marker, expected one": "an output of an earlier sapp",
    "; a pruned weight cannot start anew: ": "a model of other sizes",
    "interrupted in a trial; ": "a signal; tests/cli/test_tune.py has it",
    # what ONNX needs minutes for; tests/portable/test_export.py has both
    ": torch.export cannot record this model: ": "a model with a branch",
    "with no tensor in it: nothing for a graph to give": "a model that returns no tensor",
    "holds no learning rate; remove the file to search again": "a search of `compare --tune`, whose record was changed",
}
"""Messages without a case here or in test_python.py, and what would say them."""


@dataclass(frozen=True)
class Case:
    """A command and how it ends."""

    name: str
    command: str
    code: int
    message: str


def read_table() -> list[Case]:
    """Name, `$ command` for endings.py, exit code and message, with an empty line after each; a heading begins with #."""
    fields = (part.split("\n", 3) for part in _parts())
    return [Case(name, command.removeprefix("$ "), int(code), said) for name, command, code, said in fields]


def _parts() -> list[str]:
    """The text of each case: what stands between one line before `$` and the next such line."""
    parts: list[list[str]] = []
    lines = [
        line for file in sorted(TABLE.glob("*.txt")) for line in (*file.read_text(encoding="utf-8").splitlines(), "")
    ]
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and lines[number + 1].startswith("$ "):
            parts.append([])
        if parts and not line.startswith("# "):
            parts[-1].append(line)
    return ["\n".join(part).rstrip("\n") for part in parts]


MODELS = {
    "bert": make_bert,
    "bare": partial(make_bert, head="Model"),
    "masked": partial(make_bert, head="ForMaskedLM"),
    "tagger": partial(make_bert, head="ForTokenClassification"),
    "gpt": make_gpt2,
}
CASES = read_table()
SAID = [*(case.message for case in CASES), *SAID_BY_PYTHON]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """One checkpoint for each name in MODELS that a command asks for, made when it is asked for first."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        return folder / name if (folder / name).exists() else MODELS[name](folder / name)

    return of


@pytest.fixture(scope="session")
def output(digits, tmp_path_factory):
    """An output of `sapp prune`."""
    from sapp_cli.cli.progress import ProgressWatcher
    from sapp_cli.pipeline.prune import prune
    from sapp_cli.recipe.load import load_recipe

    out = tmp_path_factory.mktemp("pruned") / "output"
    recipe = load_recipe(digits / "recipe.yaml", ["train.steps=12", "train.evaluate_every=null"])
    prune(recipe, digits / "dense.safetensors", out, ProgressWatcher(quiet=True, verbose=False))
    return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of its own parts, when it compiles
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake(case: Case, sapp, digits, models, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SAPP_DEBUG", raising=False)
    words = case.command.split()
    asked_for = {word.partition("/")[0] for word in words} | ({"bert"} if "rows.jsonl" in case.command else set())
    wanted = {name: models(name) for name in MODELS if name in asked_for}
    lay_out(tmp_path, digits, wanted, output if " out/" in case.command else None)
    if case.name in WORLDS:
        WORLDS[case.name](tmp_path)
    before = files(tmp_path)
    ran = run(case.command, sapp)
    said = ran.err.replace(str(tmp_path), HERE).rstrip("\n")
    if not matches(said, case.message):
        assert said == case.message
    assert ran.code == case.code
    assert files(tmp_path) == before
    if case.code != GATE_NOT_MET:
        assert ran.out == "" or ran.json["error"]["code"] == case.code


def files(folder: Path) -> set[str]:
    """All that lies there, but for the bytecode of somebody's modules."""
    return {path.as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_every_world_has_its_case():
    assert set(WORLDS) <= {case.name for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_message_of_the_package_has_a_case():
    """A message that is new needs a case in table/, whole, or in test_python.py; or a line of ELSEWHERE."""
    missing = [message for message in messages() if not any(map(message.is_in, SAID))]
    unknown = [m for m in missing if not any(part in text for part in ELSEWHERE for text in m.texts)]
    assert not unknown, "\n".join(f"{message.place}: {' … '.join(message.texts)}" for message in unknown)


def test_what_has_a_case_is_not_called_untested():
    """A line of ELSEWHERE goes when a case comes."""
    missing = [text for message in messages() if not any(map(message.is_in, SAID)) for text in message.texts]
    assert [part for part in ELSEWHERE if not any(part in text for text in missing)] == []


def test_messages_are_found_in_the_source():
    """One of each way to write a message: as it stands, with placeholders, put together before, one of several."""
    longest = {message.longest for message in messages()}
    assert "__metadata__ in the header is not an object of texts" in longest
    assert ": exists already; give another folder with -o, or --overwrite to replace it" in longest
    assert " is not UTF-8 (byte " in longest
    assert len(longest) > 250
