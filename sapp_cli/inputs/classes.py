"""The classes of a model by name and number, as config.json or the recipe gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sapp_cli.errors import CheckpointError, SettingError

SHOWN = 12
"""Classes that a message names."""
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
"""Endings of the names of the classes of transformers that give one label a row."""
CONFIG = "config.json"
RECIPE = "data.labels"


@dataclass(frozen=True)
class Classes:
    """`numbers` {name: number of the class}; `origin` says who numbered them."""

    numbers: Mapping[str, int]
    origin: str

    @property
    def generic(self) -> bool:
        """True if they have only the names that transformers makes up: LABEL_0, LABEL_1, …"""
        return all(name == f"LABEL_{number}" for name, number in self.numbers.items())

    def find(self, name: str) -> int | None:
        """The number of a class, whatever the case of its name, if only one has it."""
        if name in self.numbers:
            return self.numbers[name]
        alike = {number for known, number in self.numbers.items() if known.casefold() == name.casefold()}
        return alike.pop() if len(alike) == 1 else None

    def __str__(self) -> str:
        by_number = sorted(self.numbers.items(), key=lambda pair: pair[1])
        return listed(f"{name} = {number}" for name, number in by_number)


def classes_of(config: Mapping[str, Any], place: str = CONFIG) -> Classes | None:
    """The classes of a model, names made up by transformers included; None if config.json has none.

    Raises CheckpointError if config.json, which lies at `place`, contradicts itself.
    """
    by_name, by_number = _numbers(config.get("label2id")), _numbers(_turned(config.get("id2label")))
    count = config.get("num_labels", 2 if _is_classifier(config) else None)  # 2: transformers leaves its default out
    if by_name and by_number and by_name != by_number and not (by_name.generic or by_number.generic):
        raise CheckpointError(
            f"{place} contradicts itself: label2id has {by_name}; id2label has {by_number}; correct one of them"
        )
    known = by_number or by_name
    if known and isinstance(count, int) and "num_labels" in config and len(known.numbers) not in (0, count):
        raise CheckpointError(
            f"{place} contradicts itself: num_labels is {count}, and id2label has {len(known.numbers)} classes: {known}; "
            "correct one of them"
        )
    if by_name and known and known.generic:
        known = by_name  # names of one's own beside those that the library made up
    if known is None and isinstance(count, int) and 0 < count <= 1_000_000:
        known = Classes({f"LABEL_{number}": number for number in range(count)}, CONFIG)
    return known


def recipes_classes(labels: Mapping[str, int], model: Classes | None) -> Classes:
    """The classes of `data.labels`. Raises SettingError if config.json gives one of these names another number."""
    wrong = [
        f"{name} is {number}, but config.json has {name} = {model.find(name)}"
        for name, number in labels.items()
        if model is not None and model.find(name) not in (None, number)
    ]
    if wrong:
        problem = f"{listed(wrong)}; leave them out here, or correct id2label and label2id of config.json"
        raise SettingError([(RECIPE, problem)])
    return Classes(labels, RECIPE)


def listed(items: Iterable[str]) -> str:
    """`a, b, c`, cut when there are many."""
    items = list(items)
    return ", ".join(items[:SHOWN]) + (", …" if len(items) > SHOWN else "")


def _is_classifier(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(CLASSIFIERS) for name in names[:1])


def _numbers(names: Any) -> Classes | None:
    """A list of names that is damaged says nothing: the range of the labels is checked all the same."""
    try:
        numbers = {str(name): int(number) for name, number in names.items()}
    except (TypeError, ValueError, AttributeError):
        return None
    return Classes(numbers, CONFIG) if numbers else None


def _turned(names: Any) -> Any:
    return {name: number for number, name in names.items()} if isinstance(names, dict) else None
