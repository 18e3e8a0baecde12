"""The optimizer of a run: weights, vectors and mask logits in groups of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sapp_cli.methods import SequentialAttention
from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import OptimizerSection

LOGIT_RATES_ADD_UP_TO = 3.0  # under Adam, over the run: far enough for A to matter, short of collapse (docs/method.md)
SGD_LOGIT_RATE_FACTOR = 3.0
SGD_LOGIT_RATE_LIMIT = 1.0


def make_optimizer(
    settings: OptimizerSection, model: nn.Module, pruner: Pruner, total_share: float
) -> torch.optim.Optimizer:
    """adamw, adam or sgd over the model's trained parameters and the pruner's logits.

    `total_share`: the learning-rate shares of all steps added up (`learning_rate.total_share`). Every group holds its
    peak rate as `peak_lr`.
    """
    logits = pruner.logits
    logit_ids = {id(logit) for logit in logits}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in logit_ids]
    vectors = [] if settings.decay_vectors else [p for p in others if p.dim() < 2]
    vector_ids = {id(p) for p in vectors}
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": [p for p in others if id(p) not in vector_ids]},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
        {"name": "logits", "params": logits, **_logit_settings(settings, pruner, total_share)},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = _optimizer(settings, groups)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _optimizer(settings: OptimizerSection, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    lr, decay = settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, weight_decay=decay, momentum=settings.momentum, nesterov=settings.nesterov
        )
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(groups, lr=lr, weight_decay=decay, betas=settings.betas, eps=settings.eps)


def _logit_settings(settings: OptimizerSection, pruner: Pruner, total_share: float) -> dict[str, Any]:
    """The logits' own rate, decay and moments; `same` leaves the optimizer's."""
    method = pruner.method
    if not isinstance(method, SequentialAttention):
        return {}
    own: dict[str, Any] = {}
    if method.lr is None:
        if settings.name == "sgd":
            own["lr"] = min(SGD_LOGIT_RATE_LIMIT, SGD_LOGIT_RATE_FACTOR * settings.lr)
        else:
            own["lr"] = LOGIT_RATES_ADD_UP_TO / total_share
    elif method.lr != "same":
        own["lr"] = method.lr
    if method.decay != "same":
        own["weight_decay"] = method.decay
    if settings.name != "sgd" and method.betas != "same":
        own["betas"] = method.betas
    return own


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group's rate to `share` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
