"""Inputs of the shapes a Hugging Face model takes, filled with random tokens or pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.errors import UsageError


def example_inputs(model: nn.Module, batch_size: int, sequence_length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids (batch, sequence) or pixels (batch, channels, height, width), by the model's own configuration.

    Raises UsageError for a model of which it does not know what it takes, or a sequence longer than it can take.
    """
    config: Any = getattr(model, "config", None)
    wanted = getattr(model, "main_input_name", None)
    generator = torch.Generator().manual_seed(seed)
    if wanted == "input_ids" and getattr(config, "vocab_size", None):
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and 0 < longest < sequence_length:
            raise UsageError(f"--sequence-length {sequence_length}: this model takes {longest} tokens at most")
        ids = torch.randint(0, config.vocab_size, (batch_size, sequence_length), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**inputs, "decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else inputs
    if wanted == "pixel_values":
        size = getattr(config, "image_size", None) or 224  # convolutional networks take any size; this is the usual one
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.randn(batch_size, channels, height, width, generator=generator)}
    raise UsageError(
        f"what a {type(model).__name__} takes as input is not known: it is no Hugging Face text or image model"
    )
