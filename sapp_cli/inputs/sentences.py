"""What a sentence-transformers folder does after its encoder: modules.json, and the configuration of its pooling."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapp_cli.checkpoint.damage import damaged
from sapp_cli.checkpoint.json_text import read_object
from sapp_cli.errors import SettingError

LIMIT = 1_000_000
"""Bytes of these files, which have a few hundred."""
MODULES = "modules.json"
POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "mean_sqrt_len": "mean",  # of another length, and a cosine does not depend on lengths
    "max": "max",
    "lasttoken": "last",
    "weightedmean": "weighted-mean",
}
"""Name of a mode in the file, without `_token` or `_tokens` -> as objective.pooling names it."""
WITHOUT_EFFECT = ("Transformer", "Pooling", "Normalize", "Dropout")
"""Kinds of modules that the encoder and its pooling are, or that no cosine of two outputs depends on."""


@dataclass(frozen=True)
class SentenceModules:
    """The pooling of a folder, where it stands, and what else the folder does to a sentence and sapp does not."""

    pooling: str
    place: Path
    left_out: tuple[str, ...]


def sentence_modules(folder: Path | None) -> SentenceModules | None:
    """Those of a folder; None if it says nothing of pooling.

    Raises CheckpointError for damaged files, SettingError for a pooling that sapp does not compute.
    """
    if folder is None or not (folder / MODULES).is_file():
        return None
    modules = list(_modules(folder))
    place = next((folder / path / "config.json" for kind, path in modules if kind == "Pooling"), None)
    if place is None:
        return None
    config = read_object(place, "the configuration of the pooling", LIMIT)
    left_out = [
        f"{folder / path} ({kind}) is not computed: the vectors compared are those before it"
        for kind, path in modules
        if kind not in WITHOUT_EFFECT
    ]
    if config.get("include_prompt") is False:
        left_out.append(f"{place}: include_prompt is false, but sapp counts all tokens: give rows without a prompt")
    return SentenceModules(_pooling(config, place), place, tuple(left_out))


def resolved_pooling(setting: str | None, modules: SentenceModules | None) -> str:
    """`objective.pooling`, or what the folder says. Raises SettingError if the two contradict each other."""
    if modules is None:
        return setting or "mean"
    if setting not in (None, modules.pooling):
        problem = f"{setting}, but {modules.place} says {modules.pooling}; leave it out here, or correct the file"
        raise SettingError([("objective.pooling", problem)])
    return modules.pooling


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """(kind, path in the folder) of each module."""
    place = folder / MODULES
    try:
        listed = json.loads(place.read_bytes()[:LIMIT])
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(place, f"the list of modules cannot be read: {error}") from error
    for module in listed if isinstance(listed, list) else [None]:
        kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if (
            not isinstance(kind, str)
            or not isinstance(path, str)
            or Path(path).is_absolute()
            or ".." in Path(path).parts
        ):
            raise damaged(place, "is not a list of modules with a type and a path in this folder")
        yield kind.rpartition(".")[-1], path


def _pooling(config: Mapping[str, Any], place: Path) -> str:
    """By the flags of each mode, or by the one name that later versions of the library write."""
    flag = "pooling_mode_"
    modes = [key.removeprefix(flag) for key, value in config.items() if key.startswith(flag) and value is True]
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else modes or ["mean"]  # the library's default
    modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if len(modes) > 1 or modes[0] not in POOLINGS:
        computed = ", ".join(dict.fromkeys(POOLINGS.values()))
        problem = f"{place} says {' and '.join(modes)}, but sapp computes one of {computed}; take task factory, a loss of yours"
        raise SettingError([("objective.pooling", problem)])
    return POOLINGS[modes[0]]
