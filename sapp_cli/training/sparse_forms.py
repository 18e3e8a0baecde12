"""Which form a layer takes in a sparse phase: masked, or its kept blocks trained by themselves.

`auto` goes by a rule. Both forms compute the same numbers, but add them up in another order; a choice by the clock would give
two runs of one seed different last bits. `measured` is for machines and layers that the rule was not made from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from sapp_cli.codegen.support import kernels_work
from sapp_cli.layers import AttachedLayer
from sapp_cli.runtime.timing import time_in_turns
from sapp_cli.training.kept_layer import KeptLayer

LEAST_WEIGHTS = 1 << 16
"""Smaller layers take as long in one form as in the other."""
MOST_KEPT = {8: 0.7, 4: 0.3}
"""{least side of a block: share of kept blocks up to which computing with these alone was faster, at 8 to 512 tokens}"""
LOWER = 0.5
"""Of these shares, where the masked form would be computed in bfloat16, which is twice as fast."""
LEAST_WORK = 2e8
"""Weights of all such layers times steps of the phase: less is not worth the second that kernels take to compile."""
BUDGET = 0.05
"""Seconds for measuring one layer, about."""


def worth_it(layers: Mapping[str, AttachedLayer], steps: int, lower: bool) -> list[str]:
    """Those layers whose kept blocks are better trained by themselves in a phase of so many steps, by the rule.

    `lower`: under autocast to bfloat16.

    It was made from measurements on a CPU with AVX-512 (docs/results-runtime.md) and knows nothing of the number of tokens:
    where there are few, the optimizer gains what the products do not.
    """
    chosen = {name: layer for name, layer in layers.items() if _is_faster(layer, lower)}
    work = steps * sum(layer.theta.numel() for layer in chosen.values())
    return list(chosen) if work >= LEAST_WORK and _is_known(lower) else []


def _is_faster(layer: AttachedLayer, lower: bool) -> bool:
    theta, masked = layer.theta, layer.masked
    if not (theta.is_cpu and theta.dtype == torch.float32 and theta.numel() >= LEAST_WEIGHTS):
        return False
    most = next((most for side, most in MOST_KEPT.items() if min(masked.grid.block) >= side), 0.0)
    return float(masked.keep.float().mean()) <= (most * LOWER if lower else most)


def _is_known(lower: bool) -> bool:
    """True for a CPU such as the rule was made from: vectors of eight floats and more, bfloat16 without tiles of its own."""
    if not kernels_work():
        return False
    from sapp_cli.codegen.isa import chosen_isa, has_tiles

    return chosen_isa().lanes >= 8 and not (lower and has_tiles())


def measured(layers: Mapping[str, AttachedLayer], rows: Mapping[str, int], lower: bool) -> list[str]:
    """Those layers for which a step (forward, backward, AdamW) was faster on kept blocks, just now; `rows` of x of each."""
    return [name for name, layer in layers.items() if name in rows and _was_faster(layer, rows[name], lower)]


def _was_faster(layer: AttachedLayer, rows: int, lower: bool) -> bool:
    ways = {form: _step(layer, rows, form, lower) for form in ("masked", "kept-blocks")}
    seconds = {form: timing.median for form, timing in time_in_turns(ways, budget=BUDGET).items()}
    return seconds["kept-blocks"] < seconds["masked"]


def _step(layer: AttachedLayer, rows: int, form: str, lower: bool) -> Callable[[], None]:
    """A step of a copy of the layer on random numbers, which no other generator is asked for."""
    owner: nn.Module = copy.deepcopy(layer.owner)
    attached = AttachedLayer(layer.layer, owner.parametrizations[layer.attribute][0], owner, layer.attribute)  # type: ignore
    if form == "kept-blocks":
        KeptLayer(attached)
    others = [parameter for parameter in owner.parameters() if parameter is not attached.theta]
    optimizer = torch.optim.AdamW([attached.trained, *others], lr=1e-5, fused=attached.theta.is_cpu)
    outputs, inputs = attached.masked.grid.matrix
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(rows, width, generator=generator).to(attached.theta) for width in (inputs, outputs))
    x.requires_grad_()

    def run() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=lower):
            y = owner(x)
        y.backward(dy.to(y.dtype))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if x.is_cuda:  # a GPU has only been told what to do by now
            torch.cuda.synchronize(x.device)

    return run
