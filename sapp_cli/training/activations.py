"""Activations computed again in the backward pass instead of being kept: `train.gradient_checkpointing`."""

from __future__ import annotations

from typing import Any

from torch import nn

from sapp_cli.errors import SettingError


def checkpoint_gradients(model: nn.Module) -> None:
    """Have a Hugging Face model keep only what enters each of its layers. Raises SettingError for one that cannot."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    options: dict[str, Any] = {}
    if enable is None:  # its name before transformers 5.23
        enable = getattr(model, "gradient_checkpointing_enable", None)
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        problem = (
            f"{type(model).__name__} has no gradient checkpointing; set it to false and lower data.batch_size instead"
        )
        raise SettingError([("train.gradient_checkpointing", problem)])
    enable(**options)
    config: Any = model.config
    if getattr(config, "use_cache", False):
        config.use_cache = False  # of generation; computed twice it would be filled twice
