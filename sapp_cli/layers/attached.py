"""Masked weights put into a live model, and what each of them is asked for there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sapp_cli.core.masked_linear import is_for, is_for_weight, masked_linear
from sapp_cli.core.masked_linear_operator import LEAST, masked_linear_operator
from sapp_cli.core.masks import (
    as_matrix,
    block_norms,
    from_matrix,
    gather_blocks,
    scatter_blocks,
    spread,
)
from sapp_cli.layers.decisions import Layer
from sapp_cli.layers.masked_weight import KeptBlocks, MaskedWeight
from sapp_cli.layers.rows import put, whole
from sapp_cli.methods import Method


@dataclass(frozen=True)
class AttachedLayer:
    """A pruned layer in the live model."""

    layer: Layer
    masked: MaskedWeight
    owner: nn.Module
    attribute: str

    @property
    def theta(self) -> nn.Parameter:
        """The trained parameter, in the weight's own shape."""
        theta = self.owner.parametrizations[self.attribute].original  # type: ignore[index, union-attr]
        assert isinstance(theta, nn.Parameter), "a masked weight has one original"
        return theta

    @property
    def matrix(self) -> Tensor:
        """θ as its matrix (out, in), detached."""
        return as_matrix(whole(self.theta.detach()), self.masked.layout)

    @property
    def trained(self) -> nn.Parameter:
        """What the optimizer moves and gradients arrive at: θ, or its kept blocks while they are a parameter of their own."""
        return self.theta if self.masked.kept is None else self.masked.kept.values

    @property
    def holds_no_masked_weight(self) -> bool:
        """True for a layer that makes its masked weight for each product anew, in float32 on a CPU."""
        plain_linear = type(self.owner).forward is _forward_of_linear
        return plain_linear and is_for_weight(self.theta, self.masked.grid)

    @torch.no_grad()
    def part_kept_blocks(self) -> None:
        """From here on the kept blocks are trained by themselves. θ stays as it is; its kept blocks are out of date."""
        self.masked.kept = KeptBlocks(nn.Parameter(self.kept_of(self.theta)))

    @torch.no_grad()
    def kept_of(self, tensor: Tensor) -> Tensor:
        """The kept blocks (K, bc, br) of a tensor in the weight's own shape."""
        masked = self.masked
        return gather_blocks(as_matrix(tensor.detach(), masked.layout), masked.keep, masked.grid)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring θ up to date, where its kept blocks are trained by themselves."""
        masked = self.masked
        if masked.kept is not None:
            matrix = scatter_blocks(masked.kept.values, masked.keep, masked.grid)
            self.theta.copy_(
                from_matrix(torch.where(spread(masked.keep, masked.grid), matrix, self.matrix), masked.layout)
            )

    @torch.no_grad()
    def leave_dense(self) -> None:
        """From here on θ is the weight itself: what the mask made of it so far, or a frozen weight as it came."""
        masked = self.masked
        if (
            self.theta.requires_grad or masked.logits is None
        ):  # logits may have scaled a weight that was frozen meanwhile
            put(self.theta, masked.fold(whole(self.theta)))
        masked.dense = True

    def join_kept_blocks(self) -> None:
        """Train θ as a whole again."""
        self.settle()
        self.masked.kept = None


def attach(
    model: nn.Module, layers: list[Layer], method: Method, lock_zero_blocks: bool = False
) -> dict[str, AttachedLayer]:
    """Put a masked weight on every pruned layer, in place; {layer name: what was attached}."""
    attached = {}
    for layer in layers:
        if not layer.pruned:
            continue
        assert layer.layout is not None and layer.grid is not None and layer.sparsity is not None, layer.name
        owners = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in layer.names]
        weight = getattr(*owners[0]).detach()
        available = block_norms(as_matrix(weight, layer.layout), layer.grid) > 0 if lock_zero_blocks else None
        masked = MaskedWeight(method, layer.layout, layer.grid, layer.sparsity, available)
        masked.to(weight.device)
        for owner, attribute in owners:
            if not parametrize.is_parametrized(owner, attribute):  # a module that is itself shared has it already
                plain_linear = type(owner).forward is nn.Linear.forward and "forward" not in vars(owner)
                parametrize.register_parametrization(owner, attribute, masked, unsafe=True)
                if plain_linear:  # in the class that parametrizing made for this one module
                    type(owner).forward = _forward_of_linear
                    masked.streams_compiled = weight.numel() >= LEAST and is_for_weight(weight, layer.grid)
        attached[layer.name] = AttachedLayer(layer, masked, *owners[0])
    return attached


def _forward_of_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """`nn.Linear.forward` of a module whose weight is masked, without a masked weight in memory where that is faster."""
    parametrizations: Any = module.parametrizations["weight"]  # type: ignore[index]
    masked, theta = parametrizations[0], parametrizations.original
    alone = len(parametrizations) == 1 and not masked.dense and masked.kept is None and masked.round_to is None
    compiling = torch.compiler.is_compiling()
    if not (alone and is_for(x, theta, module.bias, masked.grid)) or (compiling and not masked.streams_compiled):
        return nn.Linear.forward(module, x)
    scale = masked.block_scale(theta)
    if compiling:
        y: Tensor = masked_linear_operator(x, theta, scale, module.bias, *masked.grid.block, masked.seen.number)
        return y
    return masked_linear(x, theta, scale, module.bias, masked.grid, masked.seen)
