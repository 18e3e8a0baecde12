"""Every mistake in table/ ends as the table says: exit code, whole message, nothing written, nothing on stdout."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.make_checkpoints import make_bert
from tests.cli.mistakes.messages import messages
from tests.cli.mistakes.setups import lay_out
from tests.cli.mistakes.worlds import WORLDS

TABLE = Path(__file__).with_name("table")
HERE = "HERE"  # the current folder, where a message names it
GATE_NOT_MET = 3  # then stdout has a line for each gate

ELSEWHERE = {
    # what Python alone can ask for
    "is not stored block-sparse": "Checkpoint.matrix",
    "no such tensor in this": "Checkpoint.file",
    "complex numbers (": "Checkpoint.float32, block statistics of complex numbers",
    "no gradient was seen yet": "Pruner.step",
    "has to be measured first": "Pruner without costs",
    "weight in blocks of": "sapp.BlockSparseLinear",
    "does not fit this": "sapp.load",
    "is no report of sapp; remove it": "sapp.load",
    "the Trainer will run": "the callbacks",
    # what another machine, or environment, would say
    "a PyTorch state dict is read with torch": "no torch",
    "which cannot be imported": "no transformers",
    "datasets needs the package": "no datasets",
    "needs its package": "no tensorboard, or no wandb",
    "needs a C++ compiler on a CPU": "no compiler",
    "torch.compile needs the package triton": "a GPU",
    "torch cannot compile this model": "a compiler that fails",
    "of this machine has no GPU": "a GPU",
    "does not fit into memory": "little memory",
    "bytes do not fit into memory": "little memory",
    "out of memory: lower data.batch_size": "little memory",
    "of disk, ": "a full disk",
    "quantized weights are not supported; start": "a torch that still makes quantized tensors",
    # several processes
    "does not go with weights spread by FSDP": "several GPUs",
    "does not go with train.shard": "several processes",
    "start as many as there are rows, at most": "several processes",
    "every process would measure another time": "several processes",
    "the processes disagree about the mask": "several processes",
    "another process of the run is gone": "several processes",
    # what happens while something else does
    "the file became shorter while it was read": "a file that somebody cuts meanwhile",
    "has become shorter since the run began": "a file that somebody cuts meanwhile",
    " cells are done, the same command goes on": "a signal",
    # numbers that another machine computes otherwise, or minutes of work
    "even the greatest sparsity comes to": "measured times",
    "no better than guessing": "a run that collapses",
    "gets no gradient any more": "a run that cuts a layer off",
    "cannot: the largest is": "a weight that outgrows its dtype in training",
    ": the runs have ": "a whole comparison",
    "it has no totals": "a comparison that was changed by hand",
    # what nobody has seen yet
    "the run state does not fit this run": "a run state that was changed by hand",
    "does not fit its shape": "a report that was changed by hand",
    "is no text (": "a card that was changed by hand",
    "holds texts that are not UTF-8": "Parquet that its writer did not check",
    "with no floating tensor in it": "a model of a kind that is not built here",
    "in another form than the checkpoint": "a layout that no model of today's transformers has",
    "the teacher's embeddings have": "a bare encoder and a teacher of another width",
}
"""Messages without a case here, and what would say them; most are held by the tests of their rooms."""


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
    lines = [
        line for file in sorted(TABLE.glob("*.txt")) for line in (*file.read_text(encoding="utf-8").splitlines(), "")
    ]
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
    from sapp_cli.cli.progress import ProgressWatcher
    from sapp_cli.pipeline.prune import prune
    from sapp_cli.recipe.load import load_recipe

    out = tmp_path_factory.mktemp("pruned") / "output"
    recipe = load_recipe(digits / "recipe.yaml", ["train.steps=12", "train.evaluate_every=null"])
    prune(recipe, digits / "dense.safetensors", out, ProgressWatcher(quiet=True, verbose=False))
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


def test_every_message_of_the_package_has_a_case():
    """A message that is new needs a case in table/, whole; or a line of ELSEWHERE, if no command ends with it."""
    said = "\n".join(case.message for case in CASES)
    missing = [message for message in messages() if not message.is_in(said)]
    unknown = [m for m in missing if not any(part in text for part in ELSEWHERE for text in m.texts)]
    assert not unknown, "\n".join(f"{message.place}: {' … '.join(message.texts)}" for message in unknown)


def test_what_has_a_case_is_not_called_untested():
    """A line of ELSEWHERE goes when a case comes."""
    said = "\n".join(case.message for case in CASES)
    missing = [text for message in messages() if not message.is_in(said) for text in message.texts]
    assert [part for part in ELSEWHERE if not any(part in text for text in missing)] == []


def test_messages_are_found_in_the_source():
    """One of each way to write a message: as it stands, with placeholders, put together before, one of several."""
    longest = {message.longest for message in messages()}
    assert "__metadata__ in the header is not an object of texts" in longest
    assert ": exists already; give another folder with -o, or --overwrite to replace it" in longest
    assert " is not UTF-8 (byte " in longest
    assert len(longest) > 250
