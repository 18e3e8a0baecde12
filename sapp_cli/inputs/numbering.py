"""Names of classes become numbers: those of data.labels, of config.json or of the data, and else by the alphabet.

What is not looked up in the recipe or in config.json as it stands comes with a note that shows the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sapp_cli.errors import DataError
from sapp_cli.inputs.classes import RECIPE, Classes, listed
from sapp_cli.inputs.files import hint

TRAINING = "the training rows"


@dataclass(frozen=True)
class Numbering:
    """The number of each name, and the classes that the names of other rows are looked up in."""

    numbers: Mapping[str, int]
    classes: Classes | None
    note: str | None = None


def number_names(
    rows: Sequence[str | None], classes: Classes | None, where: str, own: Sequence[str] | None = None
) -> Numbering:
    """The numbers of the names in the rows, None being a label that is kept back.

    `own`: the names in the order of their numbers, if the data have numbers themselves. Raises DataError with both sides if
    the data have other names than `classes`.
    """
    names = sorted({name for name in rows if name is not None})
    if classes is not None and all(classes.find(name) is not None for name in names):
        return _looked_up(names, classes)
    given = classes is not None and classes.origin == RECIPE
    if not given and all(name.isascii() and name.isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
        if own is None or all(list(own[number : number + 1]) == [name] for name, number in numbers.items()):
            return Numbering(numbers, classes)
    if classes is not None and (given or classes.origin == TRAINING or not classes.generic):
        raise _contradiction(rows, names, classes, where)
    room = len(names if own is None else own)
    if classes is not None and room > len(classes.numbers):
        raise DataError(
            f"{where} names {room} classes ({listed(own or names)}), the model has {len(classes.numbers)}; take a model with "
            "as many, or map the names with data.labels: {name: number}"
        )
    if own is not None:
        made = Classes({name: number for number, name in enumerate(own)}, TRAINING)
        return Numbering(made.numbers, made, f"labels: {made}: the data's own numbers, as config.json names no classes")
    made = Classes({name: number for number, name in enumerate(names)}, TRAINING)
    if classes is not None:
        raise DataError(
            f"{where}: labels: {listed(names)}; {classes.origin}: {classes}; map them with data.labels: "
            f"{{{listed(f'{name}: {number}' for name, number in made.numbers.items())}}}, or with the other numbers that the "
            "model was trained with"
        )
    note = f"warning: labels: {made}: numbered by the alphabet, as nothing else says; data.labels sets other numbers"
    return Numbering(made.numbers, made, note)


def find_names(row: Sequence[str], place: int, classes: Classes, where: str) -> list[int]:
    """The numbers of several names of one row. Raises DataError naming the first that is not a class."""
    numbers = {name: classes.find(name) for name in row}
    odd = next((name for name, number in numbers.items() if number is None), None)
    if odd is not None:
        raise _no_class(odd, place, classes, where, "")
    return [number for number in numbers.values() if number is not None]


def _looked_up(names: Sequence[str], classes: Classes) -> Numbering:
    numbers = {name: number for name in names if (number := classes.find(name)) is not None}
    if all(name in classes.numbers for name in names):
        return Numbering(numbers, classes)
    note = f"labels: {Classes(numbers, '')}: the numbers of {classes.origin}, whatever the case of the names"
    return Numbering(numbers, classes, note)


def _contradiction(rows: Sequence[str | None], names: Sequence[str], classes: Classes, where: str) -> DataError:
    place, name = next((p, name) for p, name in enumerate(rows) if name is not None and classes.find(name) is None)
    return _no_class(name, place, classes, where, f"labels: {listed(names)}; ")


def _no_class(name: str, place: int, classes: Classes, where: str, labels: str) -> DataError:
    remedy = (
        "add it there" if classes.origin == RECIPE else "correct the rows, or map them with data.labels: {name: number}"
    )
    return DataError(
        f"{where} has '{name}' in row {place} (counted from 0), which is not a class; {labels}{classes.origin}: {classes}"
        f"{hint(name, classes.numbers)}; {remedy}"
    )
