"""The model as the step loop calls it: itself, compiled, spread by FSDP2, or one of DDP's copies.

DDP averages the gradients of the parameters that it was made with. Where a phase trains others (`sparse_phases`), it has to be
made anew, by all processes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from sapp_cli.training.compilation import compiled
from sapp_cli.training.sharding import is_sharded


class Replica:
    """`module` is what a step's forward goes through; its gradients are those of all processes."""

    module: nn.Module

    def __init__(self, model: nn.Module, accelerator: Accelerator, *, compile: bool) -> None:
        self._model = model
        self._accelerator = accelerator
        self._values: list[nn.Parameter] = []
        self.fixed = compile or is_sharded(model)
        """True where only the parameters of the start can be trained: FSDP has spread those, a compiler has seen their use."""
        self.module = model if is_sharded(model) else accelerator.prepare_model(model)
        if compile:
            self.module = compiled(self.module)
        self.module.train()

    def train_beside(self, values: Sequence[nn.Parameter]) -> None:
        """From here on train these beside the model's own parameters, as far as those want gradients.

        Every process calls it with its own copies, in the same order; nothing is done where they are those of the last call.
        """
        if list(map(id, values)) == list(map(id, self._values)):
            return
        assert not self.fixed, "whoever changes parameters has looked"
        self._values = list(values)
        if self._accelerator.num_processes > 1:
            # The old one goes before the new one comes: each has room for all gradients.
            del self.module
            self._accelerator.free_memory()
            self.module = self._accelerator.prepare_model(_Beside(self._model, values))


class _Beside(nn.Module):
    """A model with parameters that are no part of it, for DDP to find."""

    def __init__(self, model: nn.Module, values: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.model = model
        self.values = nn.ParameterList(values)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)
