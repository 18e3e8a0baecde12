"""`source: tensors`: arrays of a .safetensors or .npz file, one row of each array a row of data.

n: rows.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from sapp_cli.errors import DataError, SettingError
from sapp_cli.inputs.files import find_files, hint, place
from sapp_cli.inputs.holdout import digest, hold_out
from sapp_cli.inputs.rows import TARGETS, DataSets, Row, Targets, stack_rows
from sapp_cli.recipe.data_section import DataSection
from sapp_cli.recipe.schema import ObjectiveSection

UNLABELLED = ("embedding-distillation", "factory")
"""Tasks that do without targets. A causal LM without them predicts its inputs."""


class TensorRows(Dataset[Row]):
    """Some rows of a few arrays (n, …)."""

    def __init__(self, arrays: dict[str, Tensor], numbers: Sequence[int], origin: str) -> None:
        self.arrays = arrays
        self.numbers = numbers
        self.origin = origin

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        number = self.numbers[index]
        return {name: array[number] for name, array in self.arrays.items()}

    @property
    def targets(self) -> Targets | None:
        if TARGETS not in self.arrays:
            return None
        return Targets(self.arrays[TARGETS][torch.as_tensor(self.numbers)], self.numbers, self.origin)


def load_tensor_data(data: DataSection, objective: ObjectiveSection) -> DataSets:
    """Training and validation rows of `data.files`; errors as those of `load_data`."""
    if objective.task == "masked-lm":
        problem = "masked-lm masks tokens itself and needs the tokenizer; use data.source: datasets"
        raise SettingError([("objective.task", problem)])
    train_files = find_files(data.files.train, "data.files.train")
    arrays = _read(train_files, objective.task)
    count, origin = len(next(iter(arrays.values()))), place(train_files)
    if data.files.validation:
        files = find_files(data.files.validation, "data.files.validation")
        others = _read(files, objective.task)
        _require_like(arrays, others, place(files))
        train = TensorRows(arrays, range(count), origin)
        validation = TensorRows(others, range(len(next(iter(others.values())))), place(files))
        held = f"{len(validation):,} rows of {place(files)}"
    else:
        kept, held_out = hold_out(_digests(arrays), data.validation_share, origin)
        train, validation = TensorRows(arrays, kept, origin), TensorRows(arrays, held_out, origin)
        held = f"{len(validation):,} rows held out of them"
    return DataSets(train, validation, stack_rows, f"training: {len(train):,} rows of {origin}; validation: {held}")


def _read(paths: Sequence[Path], task: str) -> dict[str, Tensor]:
    """The arrays of all files, one after the other, checked and in the dtypes of training."""
    parts = []
    for path in paths:
        arrays = _read_file(path)
        _require_rows(arrays, task, path)
        parts.append({name: _trainable(name, array, task, path) for name, array in arrays.items()})
        _require_like(parts[0], parts[-1], str(path))
    arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
    if task == "embedding-distillation":
        arrays.pop(TARGETS, None)
    elif task == "causal-lm" and TARGETS not in arrays:
        arrays[TARGETS] = arrays["inputs" if "inputs" in arrays else "input_ids"].long()
    return arrays


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            # np.load leaves a damaged file open if it opened it itself.
            with path.open("rb") as file:
                if not zipfile.is_zipfile(file):
                    raise ValueError("it is no .npz file, or damaged")
                file.seek(0)
                arrays = np.load(file, allow_pickle=False)
                return {name: _tensor(name, arrays, path) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(
        f"{path}: data.source tensors reads .safetensors and .npz files; for tables use data.source datasets"
    )


def _tensor(name: str, arrays: Mapping[str, Any], path: Path) -> Tensor:
    """One array of an archive."""
    try:
        return torch.from_numpy(arrays[name])
    except TypeError as error:
        kind = {"U": "texts", "S": "texts", "M": "dates"}.get(arrays[name].dtype.kind, str(arrays[name].dtype))
        raise DataError(f"{path}: '{name}' holds {kind}, not numbers; labels are whole numbers from 0 on") from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        problem = "holds Python objects, which are not read; save one array of numbers, its rows of equal length"
        raise DataError(f"{path}: '{name}' {problem}") from error


def _require_rows(arrays: dict[str, Tensor], task: str, path: Path) -> None:
    """Inputs, targets where the task needs them, and equal numbers of rows."""
    if not arrays.keys() - {TARGETS}:
        raise DataError(f"{path} has no array 'inputs'; it has: {', '.join(sorted(arrays)) or 'nothing'}")
    optional = task in UNLABELLED or (task == "causal-lm" and arrays.keys() & {"inputs", "input_ids"})
    if TARGETS not in arrays and not optional:
        names = ", ".join(sorted(arrays))
        raise DataError(f"{path} has no array '{TARGETS}'; it has: {names}{hint(TARGETS, arrays)}")
    scalars = [name for name, array in arrays.items() if array.dim() == 0]
    if scalars:
        raise DataError(f"{path}: '{scalars[0]}' is a single number; every array has one entry a row")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise DataError(
            f"{path}: arrays differ in rows: {', '.join(f'{name} {n}' for name, n in sorted(rows.items()))}"
        )
    if 0 in rows.values():
        raise DataError(f"{path} has no rows")


def _trainable(name: str, array: Tensor, task: str, path: Path) -> Tensor:
    """Floats in fp32, the dtype of training; targets in the dtype of the task; DataError for values that cannot be."""
    where = f"{path}: '{name}'"
    if array.is_complex():
        raise DataError(f"{where} is complex; a model takes real numbers")
    if array.is_floating_point():
        array = array.float()
        bad = array.isnan() if name != TARGETS else ~array.isfinite()
        if bad.any():
            row = int(bad.flatten(1).any(1).nonzero()[0]) if bad.dim() > 1 else int(bad.nonzero()[0])
            raise DataError(
                f"{where} is {'NaN' if array[row].isnan().any() else 'infinite'} in row {row} (counted from 0)"
            )
    if name != TARGETS:
        return array
    if task in ("regression", "binary"):
        array = array.float()
        if task == "binary" and not ((array >= 0) & (array <= 1)).all():
            raise DataError(f"{where} has values outside of 0 to 1, which objective.task binary takes")
        return array
    if task in ("classification", "causal-lm"):
        if task == "classification" and array.dim() != 1:
            raise DataError(
                f"{where} has shape {tuple(array.shape)}; objective.task classification takes one label a row: the number "
                "of its class"
            )
        if array.is_floating_point():
            advice = "; for numbers to be met set objective.task regression" if task == "classification" else ""
            raise DataError(f"{where} is floating-point; objective.task {task} takes integers{advice}")
        return array.long()
    return array


def _require_like(first: dict[str, Tensor], other: dict[str, Tensor], place_of_other: str) -> None:
    """The same arrays, shapes of a row and dtypes."""
    if first.keys() != other.keys():
        names = (", ".join(sorted(arrays)) for arrays in (other, first))
        raise DataError(f"{place_of_other} has the arrays {next(names)}; the first file has {next(names)}")
    for name, array in other.items():
        expected = first[name]
        if array.shape[1:] != expected.shape[1:] or array.dtype != expected.dtype:
            ours, theirs = (f"{tuple(a.shape[1:])} {str(a.dtype).removeprefix('torch.')}" for a in (array, expected))
            raise DataError(f"{place_of_other}: a row of '{name}' is {ours}; in the first file {theirs}")


def _digests(arrays: dict[str, Tensor]) -> list[bytes]:
    """SHA-256 of every row: of each array in the order of names, its little-endian bytes."""
    count = len(next(iter(arrays.values())))
    content = {
        name: arrays[name].reshape(count, arrays[name][0].numel()).contiguous().view(torch.uint8).numpy()
        for name in sorted(arrays)
    }
    return [digest((name, rows[index].tobytes()) for name, rows in content.items()) for index in range(count)]
