"""The label column of a table as targets: names of classes become numbers, numbers stay what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor

from sapp_cli.errors import DataError
from sapp_cli.inputs.files import hint
from sapp_cli.inputs.tables import Table, require_filled

Classes = Mapping[str, int]
"""Name of a class -> its number."""


def model_classes(config: Mapping[str, Any]) -> Classes | None:
    """The classes a config.json names in label2id or id2label; None where it names none, or only LABEL_0, LABEL_1, …"""
    names = config.get("label2id") or {name: key for key, name in (config.get("id2label") or {}).items()}
    try:
        classes = {str(name): int(number) for name, number in names.items()}
    except (TypeError, ValueError, AttributeError):
        return None  # a damaged list of names says nothing; the label range is checked all the same
    generic = all(name == f"LABEL_{number}" for name, number in classes.items())
    return None if generic else classes


def read_targets(table: Table, name: str, task: str, classes: Classes | None) -> tuple[Tensor, Classes | None]:
    """The column as targets, int64 (n,) of classification or fp32 (n,) of regression and binary, and its classes.

    Names are looked up in `classes`; without any, classes are numbered in the order of their sorted names, and the
    numbering is returned for the validation rows. Raises DataError naming row and value.
    """
    require_filled(table, name)
    values = _values(table, name, classes)
    where = f"{table.origin}: column '{name}'"
    if task == "regression":
        return _numbers(values, where), None
    if all(isinstance(value, str) for value in values):
        known = classes or {label: number for number, label in enumerate(sorted(set(values)))}
        values = _look_up(values, known, where)
    else:
        known = None
    if task == "binary":
        targets = _numbers(values, where)
        outside = ((targets < 0) | (targets > 1)).nonzero().flatten()
        if outside.numel():
            row = int(outside[0])
            raise DataError(
                f"{where} is {values[row]} in row {row} (counted from 0); objective.task binary takes 0 to 1"
            )
        return targets, known
    odd = next((row for row, value in enumerate(values) if not isinstance(value, int)), None)
    if odd is not None:
        raise DataError(
            f"{where} holds {values[odd]!r} in row {odd} (counted from 0); objective.task classification takes whole "
            "numbers or names of classes; for numbers to be met set objective.task regression"
        )
    return torch.tensor(values, dtype=torch.int64), known


def require_head(classes: Classes, config: Mapping[str, Any], where: str) -> None:
    """Raise DataError for more names of classes than a model has that names none itself."""
    room = len(config.get("id2label") or {}) or len(classes)
    if len(classes) > room:
        known = ", ".join(sorted(classes)[:10]) + (", …" if len(classes) > 10 else "")
        raise DataError(f"{where} names {len(classes)} classes ({known}), the model has {room}")


def _values(table: Table, name: str, classes: Classes | None) -> list[Any]:
    """The column as a list; ClassLabel numbers become their names where the model has classes of these names."""
    values = list(table.data[name][:])
    feature = table.data.features[name]
    named = isinstance(feature, datasets.ClassLabel) and classes is not None and set(feature.names) <= classes.keys()
    if named and min(values) >= 0:  # −1 stands for a label that is kept back, and is reported as it is
        return [feature.names[value] for value in values]
    return [int(value) if isinstance(value, bool) else value for value in values]


def _look_up(names: Sequence[str], classes: Classes, where: str) -> list[int]:
    unknown = next((row for row, name in enumerate(names) if name not in classes), None)
    if unknown is not None:
        known = ", ".join(sorted(classes)[:10]) + (", …" if len(classes) > 10 else "")
        raise DataError(
            f"{where} is '{names[unknown]}' in row {unknown} (counted from 0), which is no class: {known}"
            f"{hint(names[unknown], classes)}"
        )
    return [classes[name] for name in names]


def _numbers(values: Sequence[Any], where: str) -> Tensor:
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{where} is {value!r} in row {row} (counted from 0), which is no finite number")
    return torch.tensor(values, dtype=torch.float32)
