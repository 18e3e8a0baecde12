"""The optimizer of a run: weights, vectors and mask logits in groups of their own."""

from __future__ import annotations

import torch

from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import OptimizerSection


def make_optimizer(settings: OptimizerSection, pruner: Pruner, total_share: float) -> torch.optim.Optimizer:
    """adamw, adam or sgd over the pruned model's parameters and the pruner's logits.

    `total_share`: the learning-rate shares of all steps added up (`learning_rate.total_share`). Every group holds its
    peak rate as `peak_lr`.
    """
    groups = pruner.parameter_groups(
        settings.rate,
        settings.weight_decay,
        adam=settings.name != "sgd",
        decay_vectors=settings.decay_vectors,
        total_share=total_share,
    )
    optimizer: torch.optim.Optimizer
    parameters = [parameter for group in groups for parameter in group["params"]]
    # On a CPU torch's default makes a pass over memory for each of a dozen operations.
    fused = (all(map(_is_plain, parameters)) or None) if settings.fused == "auto" else settings.fused
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused
        )
    else:
        adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        optimizer = adam(groups, lr=settings.rate, betas=settings.betas, eps=settings.eps, fused=fused)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _is_plain(parameter: torch.nn.Parameter) -> bool:
    """True on a CPU or on CUDA, unless FSDP has spread it."""
    return parameter.device.type in ("cpu", "cuda") and type(parameter.detach()) is torch.Tensor


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group's rate to `share` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
