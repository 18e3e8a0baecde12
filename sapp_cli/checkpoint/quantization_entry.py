"""The entry of config.json by which transformers knows a folder of block-sparse weights: `{"quant_method": "sapp"}`.

Only the `sparse` folder of an output has it, and what is saved from there: loaders of dense weights would refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "quantization_config"
QUANT_METHOD = "sapp"


def with_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json with the entry."""
    return {**config, KEY: {"quant_method": QUANT_METHOD}}


def has_entry(config: Mapping[str, Any]) -> bool:
    """True if transformers would know from it that the weights beside it are block-sparse."""
    entry = config.get(KEY)
    return isinstance(entry, dict) and entry.get("quant_method") == QUANT_METHOD


def without_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json without the entry, if it has it; that of another method stays."""
    return {key: value for key, value in config.items() if key != KEY or not has_entry(config)}
