"""Every mistake of table.txt ends as the table says: exit code, whole message, nothing written, nothing on stdout."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.make_checkpoints import make_bert
from tests.cli.mistakes.messages import Message, messages, quoted_in_tests
from tests.cli.mistakes.worlds import WORLDS, lay_out

TABLE = Path(__file__).with_name("table.txt")
HERE = "HERE"  # the current folder, where a message names it
GATE_NOT_MET = 3  # then stdout has a line for each gate

ELSEWHERE = {
    "is not stored block-sparse": "Python only",
    "no gradient was seen yet": "Python only",
    "it has no totals": "a folder of `sapp compare` that was changed by hand",
    "with no floating tensor in it": "a model of a kind that is not built here",
    "cannot load it": "whatever transformers raises",
    "in another form than the checkpoint": "a layout that no model of today's transformers has",
    "a PyTorch state dict is read with torch": "an environment without torch",
    "which cannot be imported": "an environment without transformers",
    "bytes do not fit into memory": "a machine of little memory",
    "out of memory: lower data.batch_size": "a machine of little memory",
    "torch.compile needs the package triton": "a machine with a GPU",
    "of this machine has no GPU": "a machine with a GPU",
    "does not go with weights spread by FSDP": "a machine with several GPUs",
    "train.compile does not go with train.shard": "several processes",
    "start as many as there are rows, at most": "several processes",
    "every process would measure another time": "several processes",
    "compares layer by layer": "a teacher of another depth",
    "the run state does not fit this run": "a run state that was changed by hand",
    "is no report of sapp; remove it": "Python only",
    "cannot: the largest is": "a weight that outgrows its dtype in training",
    "has become shorter since the run began": "a file that somebody cuts while it is read",
    "is no text (": "a card that was changed by hand",
}
"""Messages without a case here or in another test, and what a case would need."""


@dataclass(frozen=True)
class Case:
    """A command and how it ends."""

    name: str
    command: str
    code: int
    message: str


def read_table() -> list[Case]:
    """Name, `$ sapp …`, exit code and message, with an empty line after each; a heading begins with #."""
    fields = (part.split("\n", 3) for part in _parts())
    return [Case(name, command.removeprefix("$ sapp "), int(code), said) for name, command, code, said in fields]


def _parts() -> list[str]:
    """The text of each case: what stands between one line before `$ sapp` and the next such line."""
    parts: list[list[str]] = []
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and lines[number + 1].startswith("$ sapp "):
            parts.append([])
        if parts and not line.startswith("# "):
            parts[-1].append(line)
    return ["\n".join(part).rstrip("\n") for part in parts]


CASES = read_table()


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def output(digits, tmp_path_factory):
    """An output of `sapp prune`."""
    from sapp_cli import pipeline
    from sapp_cli.cli.progress import ProgressWatcher
    from sapp_cli.recipe.load import load_recipe

    out = tmp_path_factory.mktemp("pruned") / "output"
    recipe = load_recipe(digits / "recipe.yaml", ["train.steps=12", "train.evaluate_every=null"])
    pipeline.prune(recipe, digits / "dense.safetensors", out, ProgressWatcher(quiet=True, verbose=False))
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake(case: Case, sapp, digits, bert, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SAPP_DEBUG", raising=False)
    words = shlex.split(case.command)
    with_bert = bool({"bert", "bert/pruned"} & {*words}) or "rows.jsonl" in case.command
    lay_out(tmp_path, digits, output, bert, with_output=" out/" in case.command, with_bert=with_bert)
    if case.name in WORLDS:
        WORLDS[case.name](tmp_path)
    before = files(tmp_path)
    ran = sapp(*words)
    assert (ran.code, ran.err.replace(str(tmp_path), HERE).rstrip("\n")) == (case.code, case.message)
    assert files(tmp_path) == before
    if case.code != GATE_NOT_MET:
        assert ran.out == ""


def files(folder: Path) -> set[str]:
    """All that lies there, but for the bytecode of somebody's modules."""
    return {path.as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_every_world_has_its_case():
    assert set(WORLDS) <= {case.name for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


def is_tested(message: Message, said: str) -> bool:
    return message.is_in(said) or message.longest.strip() in quoted_in_tests()


def test_every_message_of_the_package_has_a_case_or_a_test():
    """A message that is new needs a case in table.txt, or a test that quotes it."""
    said = "\n".join(case.message for case in CASES)
    missing = [message for message in messages() if not is_tested(message, said)]
    unknown = [m for m in missing if not any(part in text for part in ELSEWHERE for text in m.texts)]
    assert not unknown, "\n".join(f"{message.place}: {' … '.join(message.texts)}" for message in unknown)


def test_what_has_no_case_is_still_said():
    """A line of ELSEWHERE goes when its message goes."""
    texts = [text for message in messages() for text in message.texts]
    assert [part for part in ELSEWHERE if not any(part in text for text in texts)] == []


def test_messages_are_found_in_the_source():
    """One of each way to write a message: as it stands, with placeholders, put together before, one of several."""
    longest = {message.longest for message in messages()}
    assert "is not a safetensors file: its header does not begin with '{'" in longest
    assert ": exists already; give another folder with -o, or --overwrite to replace it" in longest
    assert " is not UTF-8 (byte " in longest
    assert len(longest) > 250
