"""The state of a run on disk, so that an interrupted run goes on as if nothing had happened.

    .NAME.sapp-run/              beside OUT; gone when OUT is there, renamed to .NAME.sapp-run-removed before it is removed
      step-000000120/            the last saved state; an older one is removed once a newer is whole
        state.safetensors        weights, logits, masks, gathered gradients, optimizer state, random state of every process
        state.json               step, recipe, hashes of the input, metrics of the dense checkpoint, layers that nothing ranks
      metrics.jsonl              of all steps so far
      trials.json                finished trials of `optimizer.lr: auto`

Safetensors and JSON alone: nothing in it can run code. A state is written under a hidden name and renamed when it is whole,
and renamed again before it is removed. So a process can be killed at any moment, and the last whole state stays.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sapp_cli.bits import DTYPE_NAMES, from_bits, to_bits
from sapp_cli.checkpoint.damage import quoted
from sapp_cli.checkpoint.output import write_json
from sapp_cli.checkpoint.safetensors import SafetensorsFile
from sapp_cli.checkpoint.write import TensorOut, disk_errors, sync_folder, write_safetensors
from sapp_cli.errors import CheckpointError
from sapp_cli.layers import put, tensor_state
from sapp_cli.pruner import DenseStart, Pruner, Ranking
from sapp_cli.training.processes import gather
from sapp_cli.training.run_record import StateRecord, read_record
from sapp_cli.training.sparse_phases import SparsePhases

STEP = re.compile(r"step-\d{9}")


@dataclass(frozen=True)
class SavedState:
    """A whole state on disk."""

    folder: Path
    step: int  # steps that are done
    record: StateRecord  # of state.json

    @property
    def tensors(self) -> SafetensorsFile:
        return SafetensorsFile(self.folder / "state.safetensors")

    def require(self, metrics: Iterable[str], layers: Iterable[str]) -> None:
        """Raise CheckpointError unless the record holds just these metrics, and costs of just these pruned layers if any."""
        found = {"dense": (self.record.dense, set(metrics)), "costs.blocks": (self.record.costs.blocks, set(layers))}
        for key, (recorded, expected) in found.items():
            if recorded is not None and recorded.keys() != expected:
                raise CheckpointError(
                    f"{self.folder / 'state.json'}: '{key}': not of this run ({quoted(min(recorded.keys() ^ expected))}); "
                    f"remove {self.folder.parent} to start anew"
                )


class RunFolder:
    """`.NAME.sapp-run/` of one OUT."""

    def __init__(self, out: Path) -> None:
        out = out.expanduser().absolute()
        self.path = out.with_name(f".{out.name}.sapp-run")

    @property
    def log(self) -> Path:
        """metrics.jsonl of the run so far."""
        return self.path / "metrics.jsonl"

    @property
    def trials(self) -> Path:
        """trials.json of the search before the run."""
        return self.path / "trials.json"

    @contextmanager
    def made(self) -> Iterator[None]:
        """Within it the folder is there; after it too, if it holds a state or trials that a run could go on from.

        Raises ResourceError if it cannot be made.
        """
        with disk_errors(self.path.parent):
            self.path.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._removed, ignore_errors=True)
            for unfinished in self.path.glob(".step-*"):
                shutil.rmtree(unfinished)
        try:
            yield
        finally:
            if not self._states() and not self.trials.exists():
                self.remove()

    def latest(self) -> SavedState | None:
        """The last whole state, None if there is none. Raises CheckpointError for one that is damaged."""
        steps = self._states()
        if not steps:
            return None
        record = read_record(steps[-1] / "state.json", f"remove {self.path} to start anew")
        return SavedState(steps[-1], int(steps[-1].name.removeprefix("step-")), record)

    def save(
        self, step: int, tensors: Mapping[str, Tensor], entries: Mapping[str, Tensor], record: StateRecord
    ) -> None:
        """Write the state after `step` steps, whole or not at all. Raises ResourceError; the last state stays then.

        `tensors` give names, shapes and dtypes; what is in them is read from `entries`, one after the other. If the state of
        this step is there, the run was resumed from it and has finished no step since: it stays.
        """
        whole = self.path / f"step-{step:09}"
        if whole.exists():
            return
        unfinished = self.path / f".{whole.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with disk_errors(self.path):
                unfinished.mkdir()
            outs = [_out(name, tensor, entries) for name, tensor in tensors.items()]
            write_safetensors(unfinished / "state.safetensors", outs)
            write_json(unfinished / "state.json", record.as_json())
            with disk_errors(self.path):
                unfinished.rename(whole)
                sync_folder(self.path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for older in self._states()[:-1]:
            _remove(older, older.with_name(f".{older.name}"))

    def remove(self) -> None:
        """Remove the folder: OUT is there, or the run is to start anew."""
        _remove(self.path, self._removed)

    @property
    def _removed(self) -> Path:
        return self.path.with_name(f"{self.path.name}-removed")

    def _states(self) -> list[Path]:
        """The folders of the saved states, the oldest first."""
        return sorted(path for path in self.path.glob("step-*") if STEP.fullmatch(path.name))


def _remove(folder: Path, aside: Path) -> None:
    """Remove the folder, if it is there. It is renamed first: a process that is killed leaves no half of it in its place."""
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def collect(
    model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> dict[str, Tensor]:
    """All tensors that a run needs to go on: {"model.NAME", "keep.NAME", "fisher.NAME", "optimizer.NAME.KEY", …}."""
    pruner.hold()
    tensors = {f"model.{name}": tensor for name, tensor in tensor_state(model).items()}
    tensors |= {f"keep.{name}": keep for name, keep in pruner.masks.items()}
    tensors |= {f"support.{name}": keep for name, keep in pruner.support.items()}
    tensors |= {f"fisher.{name}": gathered for name, gathered in pruner.fisher.blocks.items()}
    tensors |= {f"logits_before.{name}": logits for name, logits in pruner.logits_before.items()}
    trained = _trained(pruner)
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(trained.get(id(parameter), parameter), {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    if accelerator.scaler is not None:
        scaler = accelerator.scaler.state_dict()
        tensors |= {f"scaler.{key}": torch.tensor(float(value), dtype=torch.float64) for key, value in scaler.items()}
    for rank, state in enumerate(gather(_random_state())):
        tensors |= {f"random.{rank}.{name}": value for name, value in state.items()}
    return tensors


def restore(
    state: SavedState,
    model: nn.Module,
    pruner: Pruner,
    phases: SparsePhases,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> None:
    """Put everything that `collect` took back where it came from, bit by bit."""
    file = state.tensors

    def read(name: str) -> Tensor:
        return from_bits(file.array(name), file.tensors[name].dtype)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): read(name) for name in file.tensors if name.startswith(prefix)}

    try:
        _load(model, part("model."))
        ranking = Ranking(**state.record.ranking.model_dump())
        start = DenseStart(**state.record.dense_start.model_dump())
        gathered, before = part("fisher."), part("logits_before.")
        pruner.restore(state.step, part("keep."), part("support."), gathered, ranking, before, start)
        phases.enter(state.record.kept_blocks)
        trained = _trained(pruner)
        fused = bool(optimizer.param_groups[0].get("fused"))
        for name, parameter in model.named_parameters():
            values = part(f"optimizer.{name}.")
            if values:
                place = trained.get(id(parameter), parameter)
                optimizer.state[place] = {key: _placed(key, value, place, fused) for key, value in values.items()}
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict({key: float(value) for key, value in part("scaler.").items()})
        _restore_random_state(part(f"random.{accelerator.process_index}."))
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{state.folder}: the run state does not fit this run ({reason}); remove {state.folder.parent} to start anew"
        ) from error


def _trained(pruner: Pruner) -> dict[int, nn.Parameter]:
    """{id of a masked weight's θ: what the optimizer moves in its place}; itself, or its kept blocks."""
    return {id(layer.theta): layer.trained for layer in pruner.attached.values()}


def _load(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Model.load_state_dict, for a model that is spread over processes as well."""
    state = tensor_state(model)
    if {name: tensor.shape for name, tensor in state.items()} != {name: value.shape for name, value in saved.items()}:
        raise ValueError("another model")
    for name, tensor in state.items():
        put(tensor, saved[name])


def _placed(key: str, value: Tensor, parameter: nn.Parameter, fused: bool) -> Tensor:
    """A value of the optimizer's, where the parameter lies; Adam counts its steps on the CPU, unless it is fused."""
    if key == "step":
        return value.to(parameter.device) if fused else value
    placed = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    put(placed, value)
    return placed


def _out(name: str, tensor: Tensor, entries: Mapping[str, Tensor]) -> TensorOut:
    return TensorOut(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), lambda: to_bits(entries[name]))


def _random_state() -> dict[str, Tensor]:
    """The state of every generator that training, a model or somebody's data may draw from."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    python = json.dumps([version, list(internal), gauss]).encode()
    tensors["python"] = torch.frombuffer(bytearray(python), dtype=torch.uint8)
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy = json.dumps([name, keys.tolist(), position, has_gauss, cached]).encode()  # type: ignore[union-attr]
    tensors["numpy"] = torch.frombuffer(bytearray(numpy), dtype=torch.uint8)
    return tensors


def _restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
    version, internal, gauss = json.loads(bytes(tensors["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = json.loads(bytes(tensors["numpy"].tolist()))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
