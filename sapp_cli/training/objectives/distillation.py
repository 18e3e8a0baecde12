"""Distances between what student and teacher say, one number a row or token.

n: rows or tokens.  k: classes.  B: rows of a batch.  L: tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import Batch
from sapp_cli.training.objectives.forward import token_weights


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)) of logits (n, k): (n,) (Hinton et al., 2015, §2).

    The factor keeps its gradient as large as the task's whatever the temperature.
    """
    ours, theirs = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kl_divergence` of the two classes behind one logit (n,)."""
    ours, theirs = (torch.stack([torch.zeros_like(logit), logit], dim=-1) for logit in (student, teacher))
    return kl_divergence(ours, theirs, temperature)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> Tensor:
    """The mean over layers of ‖h_s − h_t‖²/‖h_t‖², each over all tokens of the batch but the padding.

    Raises SettingError for a teacher of other layers.
    """
    ours, theirs = ([tuple(states.shape) for states in layers] for layers in (student, teacher))
    if ours != theirs:
        problem = (
            f"compares layer by layer; the model has {len(ours)} of {ours[-1][-1]} numbers a token, the teacher "
            f"{len(theirs)} of {theirs[-1][-1]}: set it to 0"
        )
        raise SettingError([("objective.distill.hidden_states", problem)])
    return torch.stack([_relative(h_s, h_t, batch) for h_s, h_t in zip(student, teacher, strict=True)]).mean()


def _relative(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    ours, theirs = student.float(), teacher.float()  # (B, L, …)
    weights = token_weights(theirs, batch) if theirs.dim() > 2 else 1.0
    error = ((ours - theirs).square() * weights).sum()
    size = (theirs.square() * weights).sum()
    return error / size.clamp(min=torch.finfo(torch.float32).tiny)  # a layer of zeros
