"""Which of the mappings in a training checkpoint is read, and the line on the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sapp_cli
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.errors import CheckpointError

STATE = {"h.weight": torch.ones(128, 128), "h.bias": torch.zeros(128)}  # 66,048 bytes
AVERAGE = {name: tensor + 1 for name, tensor in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(500, 500)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
HERE = "(2 tensors, 66,048 bytes)"


def opened(folder: Path, content: Any) -> Checkpoint:
    torch.save(content, folder / "train.pt")
    return open_checkpoint(folder / "train.pt")


def is_state(checkpoint: Checkpoint) -> bool:
    """True if what is read is STATE, not its average."""
    return checkpoint.dense_names() == list(STATE) and bool((checkpoint.array("h.weight") == 1).all())


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state", "model_state_dict", "net", "model", "weights", "module", "my_network", "ema"]
)
def test_a_state_dict_under_any_key(tmp_path: Path, key: str) -> None:
    for content in ({key: STATE}, {key: {"inner": STATE}}, {"outer": {key: STATE}}):
        checkpoint = opened(tmp_path, {"epoch": 3, "optimizer": OPTIMIZER, **content})
        assert is_state(checkpoint)
        assert checkpoint.notes == ()


@pytest.mark.parametrize(
    ("content", "place", "ignored"),
    [
        ({"epoch": 3, "state_dict": STATE, "best_acc1": torch.tensor(71.5)}, "'state_dict'", "'best_acc1'"),
        ({"step": torch.tensor(7), "net": STATE, "rng_state": torch.get_rng_state()}, "'net'", "'step'"),
        ({"queue": torch.ones(1000, 1000), "model": STATE}, "'model'", "'queue'"),  # larger than the model
        (
            {"G": {"a": torch.ones(10)}, "D": STATE, "x": torch.ones(1)},
            "'D'",
            "'x'; 'G' (1 tensor, 40 bytes)",
        ),
    ],
)
def test_the_largest_is_read_and_the_rest_is_named(
    tmp_path: Path, content: dict[str, Any], place: str, ignored: str
) -> None:
    checkpoint = opened(tmp_path, content)
    assert is_state(checkpoint)
    line = f"{tmp_path / 'train.pt'}: reads the tensors under {place} {HERE}; ignores {ignored}"
    assert checkpoint.notes == (line,)


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"ema": AVERAGE, "model": STATE}, ["ema"]),
        ({"state_dict_ema": AVERAGE, "state_dict": STATE}, ["state_dict_ema"]),
        ({"teacher": AVERAGE, "student": STATE}, ["teacher"]),
        ({"model": {"average": AVERAGE, "net": STATE}}, ["model", "average"]),
        # An average with a counter of its own is no larger for that.
        ({"ema": {**AVERAGE, "decay": torch.tensor(0.9), "updates": torch.tensor(3)}, "state": STATE}, ["ema"]),
        ({"ema": AVERAGE, **STATE}, ["ema"]),
    ],
)
def test_of_a_model_and_its_average_the_model_is_read_and_the_line_says_how_to_take_the_average(
    tmp_path: Path, content: dict[str, Any], keys: list[str]
) -> None:
    checkpoint = opened(tmp_path, content)
    assert is_state(checkpoint)
    path, inner = str(tmp_path / "train.pt"), "".join(f"[{key!r}]" for key in keys)
    assert checkpoint.notes[0].endswith(
        f". To take '{'.'.join(keys)}' instead: torch.save(torch.load({path!r}){inner}, 'weights.pt')"
    )
    average = torch.load(path)
    for key in keys:
        average = average[key]
    torch.save(average, tmp_path / "weights.pt")  # what the line says
    assert bool((open_checkpoint(tmp_path / "weights.pt").array("h.weight") == 2).all())


def test_the_order_between_equals_is_that_of_the_keys(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"net": AVERAGE, "b": AVERAGE, "state_dict": STATE})
    assert is_state(checkpoint)


def test_extra_state_of_a_module_does_not_hide_its_model(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {**STATE, "q._extra_state": {"weights": {"scale": torch.ones(10**6)}}})
    assert is_state(checkpoint)
    assert checkpoint.ignored == {"q._extra_state": "not a tensor but dict"}


def test_an_optimizer_is_not_a_model(tmp_path: Path) -> None:
    assert is_state(opened(tmp_path, {"opt": OPTIMIZER, "net": STATE}))
    with pytest.raises(CheckpointError, match="holds no state dict, but the keys 'optimizer', 'epoch'; save model"):
        opened(tmp_path, {"optimizer": OPTIMIZER, "epoch": 1})


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": STATE}
    content["again"] = content
    assert is_state(opened(tmp_path, content))


def test_a_stride_of_zero_does_not_win(tmp_path: Path) -> None:
    assert is_state(opened(tmp_path, {"a": {"x": torch.ones(1).expand(2**40)}, "b": STATE}))


def test_every_verb_reads_the_same_and_says_so(sapp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 3, "state_dict": STATE, "best_acc1": torch.tensor(71.5)}, "train.pt")
    line = f"train.pt: reads the tensors under 'state_dict' {HERE}; ignores 'best_acc1'\n"
    ran = sapp("report", "train.pt", "--json")
    assert (ran.code, ran.err) == (0, line)
    assert [(layer["name"], layer["bytes_dense"]) for layer in ran.json["layers"]] == [("h.weight", 65536)]
    assert ran.json["model"]["bytes_dense"] == 66048
    assert sapp("report", "train.pt", "--json", "-q").err == ""
    assert sapp("check", "train.pt", "--max-size", "70kB").err == line
    ran = sapp("export", "train.pt", "-o", "x", "--layout", "dense")
    assert (ran.code, ran.err) == (0, line)
    assert open_checkpoint(tmp_path / "x").dense_names() == list(STATE)
    ran = sapp("recipes", "init", "train.pt")
    assert (ran.code, ran.err) == (0, line)
    assert "8×8 : 100% of the matrix weights" in ran.out
    with pytest.warns(UserWarning, match="reads the tensors under 'state_dict'") as caught:
        assert list(sapp_cli.load_state_dict("train.pt")) == list(STATE)
    assert caught[0].filename == __file__
    model = torch.nn.ModuleDict({"h": torch.nn.Linear(128, 128)})
    with pytest.warns(UserWarning, match="reads the tensors under 'state_dict'") as caught:
        assert bool((sapp_cli.load(model, "train.pt")["h"].weight == 1).all())
    assert caught[0].filename == __file__
