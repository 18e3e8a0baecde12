"""Whether a model has a position for every token of the longest row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sapp_cli.errors import SettingError

if TYPE_CHECKING:
    from torch import nn


def positions_of(config: Mapping[str, Any]) -> dict[str, int]:
    """{key of config.json: the positions that it gives the model}."""
    found = {key: config.get(key) for key in ("max_position_embeddings", "n_positions")}
    return {key: positions for key, positions in found.items() if isinstance(positions, int) and positions > 0}


def require_positions(max_length: int, config: Mapping[str, Any]) -> None:
    """Raise SettingError if rows of `max_length` tokens have more positions than the model."""
    for key, positions in positions_of(config).items():
        if positions < max_length:
            problem = f"{max_length} is more than the model's {positions} positions ({key} of config.json)"
            raise SettingError([("data.max_length", problem)])


def require_room(max_length: int, model: nn.Module) -> None:
    """Raise SettingError if the model counts positions from its padding token on (RoBERTa), and has too few of them."""
    from torch import nn

    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and "position" in name:
            room = module.num_embeddings - module.padding_idx - 1
            if module.num_embeddings == positions and room < max_length:
                problem = (
                    f"{max_length} is more than the model's {room} positions (max_position_embeddings of config.json, less "
                    f"{positions - room} that it keeps for padding)"
                )
                raise SettingError([("data.max_length", problem)])
