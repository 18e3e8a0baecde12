"""Sizes that config.json names, compared with the headers of the weight files before a model is built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import nn

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.errors import CheckpointError

LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
"""Keys that say how many layers are built one after the other; a layer has a tensor, or shares one with the others."""
WIDTHS = ("hidden_size", "n_embd", "d_model", "num_labels")
"""Keys that say how long an axis of some weight is, whatever the class; those of its parts may be of no use to it."""
FREE = 50_000_000
"""Weights that a model may have beyond four times those of its files, such as a head that is not there yet."""
PLACE = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
"""The number of a layer in a name."""

NamesOf = Callable[[str], list[str]]
"""What a tensor of the checkpoint may be called in the model."""


def require_sizes(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a size in config.json that no weight of the checkpoint can have.

    Building such a model would take all memory, or never end.
    """
    shapes = [checkpoint.shape(name) for name in checkpoint.dense_names()]
    longest = max((axis for shape in shapes for axis in shape), default=0)
    for key, size in _sizes(config):
        name = key.rpartition(".")[-1]
        if name in LAYERS and size > len(shapes):
            there = f"have {len(shapes):,} tensors{_layers_there(checkpoint)}"
        elif key in WIDTHS and size > longest:
            there = f"have no axis longer than {longest:,}"
        else:
            continue
        raise CheckpointError(
            f"{checkpoint.path}/config.json: {key} is {size:,}, but the weights {there}; "
            "take the config.json that belongs to these weights"
        )


def require_shapes(checkpoint: Checkpoint, build: Callable[[], nn.Module], names_of: NamesOf) -> None:
    """Raise CheckpointError if the model of config.json has weights of other sizes than the files.

    `build` makes the model, here without memory.
    """
    try:
        with torch.device("meta"):
            model = build()
    except Exception:  # whatever it is, the library says it again when the model is built in earnest
        return
    wanted = model.state_dict()
    problems, stored = [], 0
    for name in checkpoint.dense_names():
        shape = checkpoint.shape(name)
        stored += math.prod(shape)
        known = next((wanted[each] for each in names_of(name) if each in wanted), None)
        if known is not None and known.numel() != math.prod(shape):
            problems.append(f"'{name}' is {tuple(shape)}, the model wants {tuple(known.shape)}")
    if problems:
        raise does_not_fit(checkpoint, type(model), problems)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > 4 * stored + FREE:
        raise CheckpointError(
            f"{checkpoint.path}/config.json: it makes a {type(model).__name__} of {parameters:,} parameters, but the weights "
            f"have {stored:,}; take the config.json that belongs to these weights"
        )


def require_layers(
    checkpoint: Checkpoint, model: nn.Module, missing: Set[str], unexpected: Set[str], names_of: NamesOf
) -> None:
    """Raise CheckpointError if config.json asks for more layers than the weights have, or for fewer.

    `missing`: parameters of the model that the weights lack; `unexpected`: tensors that the model does not know.
    """
    greatest = _greatest(name for name in model.state_dict() if name not in missing)
    more = next((name for name in sorted(missing) if _is_beyond(name, greatest)), None)
    fewer = next((name for name in sorted(unexpected) if any(_is_beyond(n, greatest) for n in names_of(name))), None)
    if more is not None or fewer is not None:
        what = f"more layers than the weights have: '{more}' is not among them"
        if more is None:
            what = f"fewer layers than the weights have: nothing takes '{fewer}'"
        raise CheckpointError(
            f"{checkpoint.path}/config.json: it makes a {type(model).__name__} with {what}; take the config.json that belongs "
            "to these weights"
        )


def does_not_fit(checkpoint: Checkpoint, cls: type[nn.Module], problems: list[str]) -> CheckpointError:
    """The error for weights of other shapes than config.json makes."""
    lines = "\n".join(f"  {problem}" for problem in problems[:8])
    return CheckpointError(f"{checkpoint.path} does not fit the {cls.__name__} of its config.json:\n{lines}")


def _sizes(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers with their keys, those of parts such as text_config as `text_config.hidden_size`."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _sizes(value, f"{inside}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{inside}{key}", value


def _layers_there(checkpoint: Checkpoint) -> str:
    """` in 2 layers`, as the names of the tensors count them; nothing where they do not."""
    numbers = [int(found[0]) for name in checkpoint.dense_names() if (found := PLACE.search(name))]
    return f" in {max(numbers) + 1:,} layers" if numbers else ""


def _greatest(names: Iterable[str]) -> dict[str, int]:
    """{name with its layer's number left out: greatest such number}."""
    found: dict[str, int] = {}
    for name in names:
        for kind, number in _kinds(name):
            found[kind] = max(number, found.get(kind, number))
    return found


def _is_beyond(name: str, greatest: Mapping[str, int]) -> bool:
    return any(kind in greatest and number > greatest[kind] for kind, number in _kinds(name))


def _kinds(name: str) -> Iterator[tuple[str, int]]:
    """A name with each of its numbers left out, and that number."""
    for match in PLACE.finditer(name):
        yield f"{name[: match.start()]}#{name[match.end() :]}", int(match[0])
