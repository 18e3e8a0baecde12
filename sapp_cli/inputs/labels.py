"""The label column of a table as targets: names of classes become numbers, numbers stay what they are.

n: rows.  k: labels of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from sapp_cli.errors import DataError
from sapp_cli.inputs.classes import CONFIG, RECIPE, Classes
from sapp_cli.inputs.numbering import TRAINING, find_names, number_names
from sapp_cli.inputs.tables import Table, require_filled


@dataclass(frozen=True)
class Labels:
    """The targets of all rows of a table, and the classes that the names of the next table are looked up in."""

    targets: Tensor  # int64 (n,) of classification; fp32 (n,), or of lists (n, k), of regression and binary
    classes: Classes | None
    note: str | None = None  # the numbers of the names, if config.json and the recipe do not give them as they stand


def read_labels(table: Table, name: str, task: str, classes: Classes | None) -> Labels:
    """The column as targets. Raises DataError naming row and value, or both sides of a contradiction."""
    require_filled(table, name)
    values, feature = list(table.data[name][:]), table.data.features[name]
    where = f"{table.origin}: column '{name}'"
    if any(isinstance(value, list) for value in values):
        return _of_lists(values, feature, task, classes, where)
    if task == "regression":
        return Labels(_floats(values, where), classes)
    numbers, classes, note = _numbers(values, feature, classes, where, table.classes)
    if task == "binary":
        targets = _floats(numbers, where)
        _require_shares(targets, numbers, where)
        return Labels(targets, classes, note)
    odd = next((row for row, value in enumerate(numbers) if not isinstance(value, int)), None)
    if odd is not None:
        raise DataError(
            f"{where} holds {numbers[odd]!r} in row {odd} (counted from 0); objective.task classification takes whole "
            "numbers or names of classes; for numbers to be met set objective.task regression"
        )
    return Labels(torch.tensor(numbers, dtype=torch.int64), classes, note)


def _numbers(
    values: Sequence[Any], feature: Any, classes: Classes | None, where: str, own: Sequence[str] | None
) -> tuple[list[Any], Classes | None, str | None]:
    """The rows with numbers in place of names, who numbered them, and a note."""
    if isinstance(feature, datasets.ClassLabel):
        own = feature.names
        # −1 stands for a label that is kept back; the range of the labels is checked later, with its row.
        names = [own[value] if 0 <= value < len(own) else None for value in values]
        found = number_names(names, classes, where, own)
        numbers = [value if name is None else found.numbers[name] for value, name in zip(values, names, strict=True)]
        return numbers, found.classes, found.note
    if classes is not None and classes.origin == RECIPE:
        values = [str(value) for value in values]  # {1: 0, 2: 1}: the recipe may number numbers anew
    if all(isinstance(value, str) for value in values):
        found = number_names(values, classes, where, own)
        return [found.numbers[value] for value in values], found.classes, found.note
    return [int(value) if isinstance(value, bool) else value for value in values], classes, None


def _of_lists(values: Sequence[Any], feature: Any, task: str, classes: Classes | None, where: str) -> Labels:
    """Rows of several labels: a number for each label, or the names of those that apply."""
    if task == "classification":
        raise DataError(
            f"{where} holds {values[0]!r} in row 0 (counted from 0); objective.task classification takes one class a row; for "
            "several labels a row set objective.task binary, for numbers to be met regression"
        )
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        values = [[inner.names[number] for number in row] for row in values]
    if task == "binary" and any(isinstance(value, str) for row in values for value in row):
        note = None
        if classes is None:
            found = number_names([str(name) for row in values for name in row], None, where)
            classes, note = found.classes or Classes(found.numbers, TRAINING), found.note
        return Labels(_marked(values, classes, where), classes, note)
    width = len(classes.numbers) if classes is not None and classes.origin == CONFIG else len(values[0])
    for place, row in enumerate(values):
        if len(row) != width:
            raise DataError(
                f"{where} has {len(row)} numbers in row {place} (counted from 0), expected {width}, one for each label"
            )
    targets = _floats([number for row in values for number in row], where, width).view(len(values), width)
    if task == "binary":
        _require_shares(targets, values, where)
    return Labels(targets, classes)


def _marked(values: Sequence[Sequence[Any]], classes: Classes, where: str) -> Tensor:
    """1 for the labels that a row names, 0 for the others: (n, k)."""
    targets = torch.zeros(len(values), 1 + max(classes.numbers.values()))
    for place, row in enumerate(values):
        targets[place, find_names([str(name) for name in row], place, classes, where)] = 1
    return targets


def _require_shares(targets: Tensor, values: Sequence[Any], where: str) -> None:
    outside = ((targets < 0) | (targets > 1)).flatten(1).any(1) if targets.dim() > 1 else (targets < 0) | (targets > 1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise DataError(f"{where} is {values[row]} in row {row} (counted from 0); objective.task binary takes 0 to 1")


def _floats(values: Sequence[Any], where: str, width: int = 1) -> Tensor:
    """fp32 (n,); `width` of them stand in a row."""
    for place, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            row = place // width
            raise DataError(f"{where} is {value!r} in row {row} (counted from 0), which is not a finite number")
    return torch.tensor(values, dtype=torch.float32)
