"""The Fisher information of the blocks, gathered while they still leave: how they rank by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from sapp_cli.core.masks import as_matrix
from sapp_cli.layers import AttachedLayer, whole
from sapp_cli.methods import Method

DECAY = 0.95  # of the running mean: about the last twenty steps count


class BlockFisher:
    """Running means of Σ_b (dL/dŴ ⊙ Ŵ)² of the layers of one run, one number a block.

    `blocks` {layer name: fp32 (R, C)}; empty before the first gradient.
    """

    def __init__(self, attached: Mapping[str, AttachedLayer], method: Method) -> None:
        self._attached = attached
        self._method = method
        self.blocks: dict[str, Tensor] = {}
        self._last: int | None = None
        self._watched: WeakSet[torch.optim.Optimizer] = WeakSet()

    @torch.no_grad()
    def gather(self, step: int, counts: bool = True) -> None:
        """Take in the gradients of this step, once, if it `counts`. A pruned block keeps what was gathered before."""
        if step == self._last:
            return
        self._last = step
        if not counts:
            return
        for name, layer in self._attached.items():
            if layer.theta.grad is None:
                continue
            masked = layer.masked
            squares = masked.seen.squares_of(layer.theta.grad)
            if squares is None:
                gradient = as_matrix(whole(layer.theta.grad), masked.layout)
                squares = self._method.sensitivity(gradient, layer.matrix, masked.state)
            # A step that overflows in fp16 is skipped by the optimizer; here it counts as none.
            squares = squares.nan_to_num(0.0, 0.0, 0.0)
            self.of(name).lerp_(squares, (1 - DECAY) * masked.keep)

    def of(self, name: str) -> Tensor:
        """What was gathered of a layer, (R, C); zeros if it took no part in the loss, as an unused pooler."""
        if name not in self.blocks:
            self.blocks[name] = torch.zeros_like(self._attached[name].masked.keep, dtype=torch.float32)
        return self.blocks[name]

    def restore(self, blocks: Mapping[str, Tensor]) -> None:
        """Go on from what a saved run had gathered."""
        for name, gathered in blocks.items():
            self.of(name).copy_(gathered)

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
