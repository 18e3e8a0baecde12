"""The head of a model card, in the form that model hubs read: license, task, tags; facts of the source's card are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sapp_cli.outputs.card_results import model_index

SOURCE_CARD = "README.source.md"
LONGEST_HEAD = 1 << 16  # bytes of the source's card that are looked at
MOST_VALUES = 100  # of a list

CARRIED = (
    "license",
    "license_name",
    "license_link",
    "language",
    "base_model",
    "datasets",
    "metrics",
    "library_name",
    "pipeline_tag",
    "tags",
)
"""Keys that stay true when a model is pruned, in the order of the head."""

TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
}
NOT_A_METRIC = frozenset({"loss"})  # every run has one; hubs compare models by the others

Value = str | list[str]
PLAIN_NAME = re.compile(r"\w[\w .-]*")
"""A metric's name that the hub may know; others come out of files and stand in the card's text alone, escaped."""


def card_head(folder: Path, name: str, auto_class: str | None, pruned: bool, metrics: Mapping[str, Any]) -> str:
    """The lines between the two `---`. `folder` may hold the source's card and the run's recipe; `metrics`: of the manifest."""
    head = source_head(folder / SOURCE_CARD)
    if auto_class is not None:
        head.setdefault("library_name", "transformers")
    if auto_class in TASKS:
        head.setdefault("pipeline_tag", TASKS[auto_class])
    ours = ("block-sparse", "pruning", "sapp") if pruned else ("sapp",)
    head["tags"] = _joined(head.get("tags", []), ours)
    measured = [name for name in metrics if name not in NOT_A_METRIC and PLAIN_NAME.fullmatch(name)]
    if measured:
        head["metrics"] = _joined(head.get("metrics", []), measured)
    ordered: dict[str, Any] = {key: head[key] for key in CARRIED if key in head}
    # The results of the source's card are those of another model, so they are not carried.
    task = head.get("pipeline_tag")
    if results := model_index(folder, name, task if isinstance(task, str) else None, metrics):
        ordered["model-index"] = results
    return str(yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120))


def source_head(card: Path) -> dict[str, Value]:
    """What the source's card says under `CARRIED`; what is not text or a list of texts is left out, as is a broken head."""
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        text = file.read(LONGEST_HEAD).decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    lines, end, _ = text.removeprefix("---").partition("\n---")
    try:
        # Every scalar stays text: the language `no` is not a false, and a date is not an object.
        found = yaml.load(lines, yaml.BaseLoader) if end else None
    except (yaml.YAMLError, RecursionError):
        return {}
    known: Mapping[Any, Any] = found if isinstance(found, dict) else {}
    return {key: known[key] for key in CARRIED if key in known and _is_plain(known[key])}


def _is_plain(value: object) -> bool:
    """True for text on one line, or a list of such: a line break could end the head."""
    if isinstance(value, list):
        return 0 < len(value) <= MOST_VALUES and all(isinstance(one, str) and one.isprintable() for one in value)
    return isinstance(value, str) and bool(value) and value.isprintable()


def _joined(given: Value, more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*([given] if isinstance(given, str) else given), *more]))
