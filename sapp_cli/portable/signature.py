"""What a model takes and gives as a graph: tensors only, each with a name, axes of any size with names as well.

B: batch.  S: tokens given.  P: tokens that a cache holds already.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sapp_cli.errors import UsageError
from sapp_cli.runtime.example_inputs import Given, example_inputs

Axes: TypeAlias = dict[int, str]
"""Axis -> the name of its size, for those that may have any."""
BATCH = "batch"
BATCH_SIZES = 2, 3
"""Of the two examples: torch takes a size of 1 for a constant."""
LENGTHS = 6, 9
"""Their tokens."""
PAST = 4
"""Tokens in the cache of the first example; the second has an empty one, as at the start of a text."""


@dataclass(frozen=True)
class Input:
    """One tensor that the graph takes."""

    name: str
    axes: Axes
    examples: tuple[Tensor, ...]
    """Of different sizes, the first to make the graph with, all to check it with."""

    @property
    def text(self) -> str:
        """As in "input_ids int64 (batch, sequence)"."""
        first = self.examples[0]
        sizes = (self.axes.get(axis, str(size)) for axis, size in enumerate(first.shape))
        return f"{self.name} {str(first.dtype).removeprefix('torch.')} ({', '.join(sizes)})"


@dataclass(frozen=True)
class Signature:
    """A module that takes tensors by place and gives a tuple of them, with their names."""

    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    caches: bool = False
    """True: keys and values of earlier tokens go in and out."""

    def example(self, number: int) -> tuple[Tensor, ...]:
        """The tensors of one example, in order."""
        return tuple(given.examples[number] for given in self.inputs)

    @property
    def examples(self) -> range:
        return range(len(self.inputs[0].examples))


def signature_of(model: nn.Module) -> Signature:
    """Of a Hugging Face model: what its configuration says that it reads; with a cache, where it is a decoder that has one.

    Raises UsageError for a model of which nobody knows what it takes.
    """
    examples = [_named_inputs(model, size, length) for size, length in zip(BATCH_SIZES, LENGTHS, strict=True)]
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) and _has_cache(model, examples[0]):
        return _with_cache(model, examples)
    inputs = tuple(
        Input(name, _axes(name, tensor), tuple(example[name] for example in examples))
        for name, tensor in examples[0].items()
    )
    return _described(_ByName(model, tuple(examples[0])), inputs)


def signature_of_own(model: nn.Module, examples: Sequence[Given]) -> Signature:
    """Of a model of the user's: what its data give it, the first axis of each the batch."""
    named = [dict(given.named) for given in examples]
    places = [given.positional for given in examples]
    parameters = list(inspect.signature(model.forward).parameters)
    inputs = [
        Input(parameters[place] if place < len(parameters) else f"input_{place}", {0: BATCH}, tensors)
        for place, tensors in enumerate(zip(*places, strict=True))
    ]
    inputs += [Input(name, {0: BATCH}, tuple(example[name] for example in named)) for name in named[0]]
    return _described(_ByName(model, tuple(named[0])), tuple(inputs))


class _ByName(nn.Module):
    """The last tensors go to the model by name; of its answer, all tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.answer(tensors)).values())

    def answer(self, tensors: tuple[Tensor, ...]) -> Any:
        """What the model gives, as it gives it."""
        places = len(tensors) - len(self.names)
        return self.model(*tensors[:places], **dict(zip(self.names, tensors[places:], strict=True)))


class _WithCache(nn.Module):
    """A decoder with the keys and values (B, heads, P, size) of all its layers, two tensors a layer, in and out."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        past = tensors[len(self.names) :]
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        named = dict(zip(self.names, tensors, strict=False))
        answer = self.model(**named, past_key_values=cache, use_cache=True)
        return (*_tensors(answer).values(), *_cached(answer.past_key_values))


def _described(module: _ByName, inputs: tuple[Input, ...]) -> Signature:
    with torch.no_grad():
        answer = module.answer(tuple(given.examples[0] for given in inputs))
    names = tuple(_tensors(answer))
    if not names:
        raise UsageError(
            f"the model returns a {type(answer).__name__} with no tensor in it: nothing for a graph to give"
        )
    return Signature(module, inputs, names)


def _tensors(answer: Any) -> dict[str, Tensor]:
    """Those of a model's answer by name, without its cache."""
    if isinstance(answer, Tensor):
        return {"output": answer}
    if isinstance(answer, Mapping):
        parts = {str(name): part for name, part in answer.items()}
    elif isinstance(answer, list | tuple):
        parts = {f"output_{place}": part for place, part in enumerate(answer)}
    else:
        return {}
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def _named_inputs(model: nn.Module, batch_size: int, length: int) -> dict[str, Tensor]:
    """What `example_inputs` makes, and the segments that tokenizers of such models make besides."""
    made = example_inputs(model, batch_size, length)
    config = getattr(model, "config", None)
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1 and "input_ids" in made:
        made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    if "attention_mask" in made:
        made["attention_mask"][0, -1] = 0  # a text that is shorter than the others
    return {name: tensor for name, tensor in made.items() if name in takes}


def _axes(name: str, tensor: Tensor) -> Axes:
    if tensor.is_floating_point():  # of images only the number is free
        return {0: BATCH}
    return {0: BATCH, 1: "decoder_sequence" if name.startswith("decoder_") else "sequence"}


def _cached(cache: Any) -> list[Tensor]:
    """Keys and values of each layer in turn."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _has_cache(model: nn.Module, example: Mapping[str, Tensor]) -> bool:
    """True for a decoder whose layers keep the keys and values of all tokens, and nothing else."""
    if "input_ids" not in example or "use_cache" not in _all_parameters(model):
        return False
    with torch.no_grad():
        cache = getattr(model(**example, use_cache=True), "past_key_values", None)
    return cache is not None and all(
        type(layer).__name__ == "DynamicLayer" for layer in getattr(cache, "layers", [None])
    )


def _all_parameters(model: nn.Module) -> set[str]:
    """Those of forward, and `use_cache` where the configuration has it: some classes take it unnamed."""
    named = set(inspect.signature(model.forward).parameters)
    return named | ({"use_cache"} if hasattr(getattr(model, "config", None), "use_cache") else set())


def _with_cache(model: nn.Module, examples: Sequence[Mapping[str, Tensor]]) -> Signature:
    with torch.no_grad():
        answer = model(**examples[0], use_cache=True)
    names = [name for name in ("input_ids", "attention_mask", "position_ids") if name in _all_parameters(model)]
    made: dict[str, list[Tensor]] = {}
    for example, past in zip(examples, (PAST, 0), strict=True):
        ids = example["input_ids"]
        size, length = ids.shape
        places = torch.arange(past, past + length).expand(size, length).contiguous()
        whole = torch.ones(size, past + length, dtype=torch.int64)
        whole[0, 0] = past == 0  # a text that is shorter than the others, padded on the left
        for name, tensor in (("input_ids", ids), ("attention_mask", whole), ("position_ids", places)):
            made.setdefault(name, []).append(tensor)
        generator = torch.Generator().manual_seed(past)
        for place, like in enumerate(_cached(answer.past_key_values)):
            shape = size, like.shape[1], past, like.shape[3]
            tensor = torch.randn(shape, generator=generator, dtype=like.dtype)
            made.setdefault(f"past_key_values.{place // 2}.{('key', 'value')[place % 2]}", []).append(tensor)
    axes = {"attention_mask": {0: BATCH, 1: "past_and_sequence"}}
    inputs = tuple(
        Input(
            name, axes.get(name, {0: BATCH, 1: "sequence"} if name in names else {0: BATCH, 2: "past"}), tuple(tensors)
        )
        for name, tensors in made.items()
        if name in names or name.startswith("past_key_values.")
    )
    present = (given.name.replace("past_key_values", "present") for given in inputs[len(names) :])
    return Signature(_WithCache(model, tuple(names)), inputs, (*_tensors(answer), *present), caches=True)
