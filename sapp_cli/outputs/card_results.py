"""The `model-index` of a model card: what the run measured, on which rows, in the form that the hub reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

RECIPE_FILE = "recipe.yaml"
LONGEST_RECIPE = 1 << 20  # bytes
METRICS = {
    "accuracy": ("accuracy", "Accuracy"),
    "auc": ("roc_auc", "ROC AUC"),
    "mse": ("mse", "MSE"),
    "perplexity": ("perplexity", "Perplexity"),
}
"""{name in the manifest: the hub's identifier and name}; metrics that the hub does not know are left out."""
FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
"""What `datasets` calls the files of an ending, as the cards of the Hugging Face Trainer have it."""


def model_index(folder: Path, name: str, task: str | None, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One result with the metrics of the pruned model; empty if the task, the rows or every metric is not known to the hub.

    `folder`: the output, with the run's recipe; `metrics`: those of the manifest.
    """
    dataset = _dataset(folder / RECIPE_FILE)
    values = {key: entry.get("pruned") for key, entry in metrics.items() if key in METRICS and isinstance(entry, dict)}
    known = {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
    if task is None or dataset is None or not known or not name.isprintable():
        return []
    measured = [{"type": METRICS[key][0], "name": METRICS[key][1], "value": value} for key, value in known.items()]
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": measured}]}]


def _dataset(recipe: Path) -> dict[str, str] | None:
    """The validation file without its folder, which is nobody else's business; None unless it is one file or folder."""
    if not recipe.is_file() or recipe.stat().st_size > LONGEST_RECIPE:
        return None
    try:
        data = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("data", {})
        file = data["files"]["validation"]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    if data.get("source", "datasets") != "datasets" or not isinstance(file, str) or any(sign in file for sign in "*?["):
        return None
    name = PurePath(file).name
    kind = data.get("format") or FORMATS.get(PurePath(name).suffix)
    if not name or not name.isprintable() or not isinstance(kind, str):
        return None
    return {"name": name, "type": kind, "split": "validation"}
