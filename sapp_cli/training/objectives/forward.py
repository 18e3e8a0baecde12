"""How a model takes a batch, and what it answers: plain modules and Hugging Face models alike.

B: rows of the batch.  L: tokens of a row.  D: hidden size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sapp_cli.errors import DataError, SettingError
from sapp_cli.inputs.rows import TARGETS, Batch

TARGET_KEYS = (TARGETS, "labels")
"""Never passed to the model, which would compute a loss of its own; `labels` may stand in datasets of the user's."""
LIBRARY_INPUTS = {"input_ids", "pixel_values", "input_features", "input_values"}
"""What Hugging Face models of texts, images and sounds take: one is never passed as another."""
DISPENSABLE = ("attention_mask", "token_type_ids")
"""Inputs a tokenizer makes whether or not the model takes them."""


@dataclass(frozen=True)
class Inputs:
    """Which parts of a batch a model's forward takes: by name what it names, `inputs` or a lone input by position."""

    names: frozenset[str]
    any_name: bool  # forward(*args, **kwargs) and nothing else: takes everything by name

    @classmethod
    def of(cls, model: nn.Module) -> Inputs:
        """Those of an unwrapped model; a wrapper's forward names none."""
        parameters = inspect.signature(model.forward).parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        return cls(frozenset(named), any_name=not named and any(p.kind is p.VAR_KEYWORD for p in parameters))

    def arguments(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """What of a batch goes by position and what by name."""
        inputs = {key: value for key, value in batch.items() if key not in TARGET_KEYS}
        first = (inputs.pop("inputs"),) if "inputs" in inputs else ()
        named = {key: value for key, value in inputs.items() if self.any_name or key in self.names}
        of_another_kind = bool(self.names & LIBRARY_INPUTS and inputs.keys() & LIBRARY_INPUTS)
        if not first and not named and len(inputs) == 1 and not of_another_kind:
            return tuple(inputs.values()), {}
        return first, named

    def unused(self, batch: Batch) -> list[str]:
        """Inputs the model would not see, though nobody made them for any other model."""
        positional, named = self.arguments(batch)
        passed = {id(value) for value in (*positional, *named.values())}
        return [
            key for key, value in batch.items() if key not in (*TARGET_KEYS, *DISPENSABLE) and id(value) not in passed
        ]

    def call(self, model: nn.Module, batch: Batch, **options: bool) -> Any:
        """The model's output. Raises SettingError for an option of distillation that its forward does not take."""
        positional, named = self.arguments(batch)
        try:
            return model(*positional, **named, **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise
            problem = f"needs a Hugging Face model: {error}; set it to 0"
            raise SettingError([("objective.distill.hidden_states", problem)]) from error

    @torch.no_grad()
    def ask(self, teacher: nn.Module | None, batch: Batch, **options: bool) -> Any:
        """The teacher's output, in eval mode, without gradients."""
        assert teacher is not None, "an objective that needs a teacher is given one"
        if teacher.training:
            teacher.eval()
        return self.call(teacher, batch, **options)


def targets_of(batch: Batch) -> Tensor:
    """What is to be predicted. Raises DataError where the batch has none."""
    for key in TARGET_KEYS:
        if key in batch:
            return batch[key]
    raise DataError(f"the rows have no '{TARGETS}'; they have: {', '.join(batch)}")


def logits_of(output: Any) -> Tensor:
    """The logits in fp32: the output itself, its `logits`, or the first of several; SettingError where there are none."""
    logits = _part(output, "logits")
    if logits is None and isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        logits = output[0]
    if logits is None:
        problem = (
            f"the model returns {_describe(output)}, which has no logits; take a checkpoint with a head for the task, "
            "or objective.task: factory"
        )
        raise SettingError([("objective.task", problem)])
    return logits.float()


def hidden_states_of(output: Any) -> tuple[Tensor, ...]:
    """The hidden states of every layer, embeddings first. Raises SettingError where the model gives none."""
    states = _attribute(output, "hidden_states")
    if not isinstance(states, tuple | list) or not states:
        problem = f"the model returns {_describe(output)}, which has no hidden_states; set it to 0"
        raise SettingError([("objective.distill.hidden_states", problem)])
    return tuple(states)


def pooled(output: Any, batch: Batch, pooling: str) -> Tensor:
    """One fp32 vector a row, (B, D), from those of its tokens as `objective.pooling` says; a matrix is taken as it is.

    Raises SettingError where the model gives no last_hidden_state.
    """
    states = _part(output, "last_hidden_state")
    if states is None or states.dim() not in (2, 3):
        problem = (
            f"embedding-distillation: the model returns {_describe(output)}, which has no last_hidden_state; take the "
            "bare model, without a head"
        )
        raise SettingError([("objective.task", problem)])
    states = states.float()
    if states.dim() == 2:
        return states
    if pooling == "cls":
        return states[:, 0]
    weights = token_weights(states, batch)  # (B, L, 1)
    if pooling == "max":
        return states.masked_fill(weights == 0, -math.inf).amax(1)
    places = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[:, None]  # (L, 1)
    if pooling == "last":
        last = (weights * places).argmax(1)  # (B, 1)
        return states.take_along_dim(last[..., None], dim=1)[:, 0]
    if pooling == "weighted-mean":
        weights = weights * places
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def token_weights(states: Tensor, batch: Batch) -> Tensor:
    """1 for tokens, 0 for padding, to multiply states (B, L, …) with; all 1 where the batch does not say."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != states.shape[:2]:
        return states.new_ones(states.shape[:2] + (1,) * (states.dim() - 2))
    return mask.to(states.dtype).view(mask.shape + (1,) * (states.dim() - 2))


def _part(output: Any, name: str) -> Tensor | None:
    """The output if it is a tensor, else the tensor of that name in it."""
    value = output if isinstance(output, Tensor) else _attribute(output, name)
    return value if isinstance(value, Tensor) else None


def _attribute(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _describe(output: Any) -> str:
    names = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    return f"a {type(output).__name__}{names}"
