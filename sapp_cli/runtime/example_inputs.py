"""What a model is measured with: inputs of the shapes a Hugging Face model takes, or rows of the user's own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.errors import UsageError

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Given:
    """The arguments of one call of a model."""

    batch_size: int
    sequence_length: int | None
    positional: tuple[Tensor, ...]
    named: Mapping[str, Tensor]

    def call(self, model: nn.Module) -> Any:
        return model(*self.positional, **self.named)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """By name, or by place for those without one."""
        numbered = {str(place): tensor for place, tensor in enumerate(self.positional)}
        return {name: list(tensor.shape) for name, tensor in (numbered | dict(self.named)).items()}

    @property
    def text(self) -> str:
        """As in "batch 8, 128 tokens"."""
        return f"batch {self.batch_size}" + (f", {self.sequence_length:,} tokens" if self.sequence_length else "")

    def prepared(self, device: torch.device, dtype: torch.dtype) -> Given:
        """There, its floats of this dtype."""
        return self._each(lambda x: x.to(device, dtype if x.is_floating_point() else x.dtype))

    def channels_last(self) -> Given:
        """Images in channels-last memory."""

        def laid_out(x: Tensor) -> Tensor:
            memory_format = MEMORY_FORMATS.get(x.dim()) if x.is_floating_point() else None
            return x if memory_format is None else x.contiguous(memory_format=memory_format)

        return self._each(laid_out)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Given:
        named = {name: change(x) for name, x in self.named.items()}
        return replace(self, positional=tuple(map(change, self.positional)), named=named)


@dataclass(frozen=True)
class BenchInputs:
    """All that a model is measured with, one after the other."""

    description: str
    given: Callable[[nn.Module], Iterator[Given]]


def generated_inputs(model: nn.Module, batch_sizes: tuple[int, ...], lengths: tuple[int, ...]) -> BenchInputs:
    """Random ones, by the configuration of a Hugging Face model; each batch size, with each length where it reads text.

    Raises UsageError as `example_inputs` does, for all of them at once.
    """
    reads_text = getattr(model, "main_input_name", None) == "input_ids"
    every = [(size, length) for size in batch_sizes for length in (lengths if reads_text else lengths[:1])]
    for size, length in every[: len(lengths)]:
        example_inputs(model, size, length)

    def given(model: nn.Module) -> Iterator[Given]:
        for size, length in every:
            named = example_inputs(model, size, length)
            yield Given(size, length if reads_text else None, (), named)

    return BenchInputs("random token ids" if reads_text else "random pixels", given)


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
        f"what a {type(model).__name__} takes as input is not known: it is no Hugging Face text or image model; "
        "give a recipe whose data it takes with -r"
    )
