"""Squared gradients of the effective weights, gathered while blocks still leave: they rank by Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from sapp_cli.core.masks import as_matrix, from_matrix, spread
from sapp_cli.layers import AttachedLayer, held, put, rows_held, whole
from sapp_cli.methods import Method

FISHER_DECAY = 0.95  # of the running mean of squared gradients: about the last twenty steps count


class SquaredGradients:
    """Running means of (dL/dŴ)² of the layers of one run.

    `moments` {layer name: fp32, in the weight's shape}, under FSDP spread as the weight is; empty before the first gradient.
    """

    def __init__(self, attached: Mapping[str, AttachedLayer], method: Method) -> None:
        self._attached = attached
        self._method = method
        self.moments: dict[str, Tensor] = {}
        self._last: int | None = None
        self._watched: WeakSet[torch.optim.Optimizer] = WeakSet()

    @torch.no_grad()
    def gather(self, step: int) -> None:
        """Take in the gradients of this step, once. A pruned block keeps what was gathered until it was pruned."""
        if step == self._last:
            return
        self._last = step
        for name, layer in self._attached.items():
            if layer.theta.grad is None:
                continue
            masked = layer.masked
            gradient = as_matrix(whole(layer.theta.grad), masked.layout).float()
            # A step that overflows in fp16 is skipped by the optimizer; here it counts as none.
            gradient = self._method.weight_gradient(gradient, layer.matrix, masked.state).nan_to_num(0.0, 0.0, 0.0)
            moments = self._of(name)
            share = from_matrix(spread((1 - FISHER_DECAY) * masked.keep, masked.grid), masked.layout)
            square = from_matrix(gradient.square(), masked.layout)
            held(moments).lerp_(rows_held(moments, square), rows_held(moments, share))

    def watch(self, optimizer: torch.optim.Optimizer, before_step: Callable[[], None]) -> None:
        """Have `before_step` called whenever the optimizer steps; a second time for the same one changes nothing.

        Not where the step is given a closure, which makes the gradients only then, as under Lightning.
        """

        def look(_: torch.optim.Optimizer, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if all(closure is None for closure in (*given[1:], named.get("closure"))):  # the first is the optimizer
                before_step()

        plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate and others wrap it
        if plain not in self._watched:
            self._watched.add(plain)
            plain.register_step_pre_hook(look)

    def matrix(self, name: str) -> Tensor:
        """What was gathered of a layer, (out, in); zeros if it took no part in the loss, as an unused pooler."""
        return as_matrix(whole(self._of(name)), self._attached[name].masked.layout)

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Go on from what a saved run had gathered."""
        for name, gathered in moments.items():
            put(self._of(name), gathered)

    def _of(self, name: str) -> Tensor:
        if name not in self.moments:
            theta = self._attached[name].theta
            self.moments[name] = torch.zeros_like(theta, dtype=torch.float32, requires_grad=False)
        return self.moments[name]
