"""How an optimizer takes a model with masks: groups of parameters, and how fast the logits are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sapp_cli.methods import Method, SequentialAttention

LOGIT_RATES_ADD_UP_TO = 3.0  # under Adam, over the run: far enough for A to matter, short of collapse (docs/method.md)
LOGIT_RATE_LIMIT = 0.03
"""Under Adam, of one step: it moves A by 3 % at most. A run of fewer than 200 steps would have to move it faster to add up."""
SGD_LOGIT_RATE_FACTOR = 3.0
SGD_LOGIT_RATE_LIMIT = 1.0


def weight_groups(model: nn.Module, logits: Sequence[nn.Parameter], decay_vectors: bool) -> list[dict[str, Any]]:
    """Groups for torch.optim of all trained parameters but the logits: "weights", and "vectors" (biases, norms), not decayed.

    With `decay_vectors` there are none of the latter.
    """
    logit_ids = {id(logit) for logit in logits}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in logit_ids]
    vectors = [] if decay_vectors else [p for p in others if p.dim() < 2]
    vector_ids = {id(p) for p in vectors}
    return [
        {"name": "weights", "params": [p for p in others if id(p) not in vector_ids]},
        {"name": "vectors", "params": vectors, "weight_decay": 0.0},
    ]


def logit_settings(method: Method, lr: float, adam: bool, total_share: float) -> dict[str, Any]:
    """The logits' own rate, decay and moments in the optimizer; `same` leaves those of the weights, as other methods do.

    `lr`: the peak rate of the weights. `total_share`: the learning-rate shares of all steps added up.
    """
    if not isinstance(method, SequentialAttention):
        return {}
    own: dict[str, Any] = {}
    if method.lr is None:
        own["lr"] = (
            min(LOGIT_RATE_LIMIT, LOGIT_RATES_ADD_UP_TO / total_share)
            if adam
            else min(SGD_LOGIT_RATE_LIMIT, SGD_LOGIT_RATE_FACTOR * lr)
        )
    elif method.lr != "same":
        own["lr"] = method.lr
    if method.decay != "same":
        own["weight_decay"] = method.decay
    if adam and method.betas != "same":
        own["betas"] = method.betas
    return own
