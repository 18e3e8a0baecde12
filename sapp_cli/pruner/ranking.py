"""Which layers have scores that rank their blocks. The others keep all their blocks: position decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sapp_cli.core.ranking import why_unranked
from sapp_cli.errors import SettingError, TrainingError
from sapp_cli.layers import FROZEN, AttachedLayer, some_names, whole


@dataclass
class Ranking:
    """What a run knows of its layers' scores, and at its first selection decides, once; a part of the run's state."""

    shown: bool = False  # gradients were looked at
    reached: list[str] = field(default_factory=list)  # layers that a gradient has reached
    unranked: dict[str, str] | None = None  # {layer: why its blocks have no ranking}; None before the first selection

    def look(self, attached: Mapping[str, AttachedLayer]) -> None:
        """Note the layers that the gradients of a step reach, until the first selection.

        Of several processes all must look: under DDP at the mean gradients, under FSDP each tensor is put together.
        """
        if self.unranked is not None:
            return
        self.shown = True
        for name, layer in attached.items():
            gradient = layer.theta.grad
            if name not in self.reached and gradient is not None and bool(whole(gradient).any()):
                self.reached.append(name)

    def decide(self, attached: Mapping[str, AttachedLayer], scores: Mapping[str, Tensor], step: int) -> dict[str, str]:
        """{layer: why nothing ranks its blocks}, at the first selection, which comes before step `step`.

        Raises SettingError (before the first step) or TrainingError if that is so for every layer.
        """
        assert self.unranked is None, "a run decides once"
        whys = {name: self._why(layer, scores[name], name, step) for name, layer in attached.items()}
        self.unranked = {name: why for name, why in whys.items() if why is not None}
        if len(self.unranked) == len(attached):
            if step:
                must_be_finite(attached, scores, step)  # a run that diverged, not a loss that misses its layers
            stored = {attached[name].layer.stored: why for name, why in self.unranked.items()}
            problem = f"no layer is left to prune: {list_unranked(stored)}; check that the loss uses them"
            raise TrainingError(problem) if step else SettingError([("prune", problem)])
        return self.unranked

    def _why(self, layer: AttachedLayer, scores: Tensor, name: str, step: int) -> str | None:
        if not layer.masked.keep.any():
            return None  # all its blocks are locked
        if not layer.theta.requires_grad:
            return FROZEN
        if self.shown and name not in self.reached:
            return "no gradient from the loss in the first " + ("step" if step == 1 else f"{step} steps")
        return why_unranked(scores, layer.masked.keep, layer.masked.grid)


def describe_unranked(whys: Mapping[str, str]) -> str:
    """The layers {name: why} in one line."""
    count = "1 layer keeps all its" if len(whys) == 1 else f"{len(whys)} layers keep all their"
    return f"{count} blocks, because nothing ranks them: {list_unranked(whys)}"


def must_be_finite(attached: Mapping[str, AttachedLayer], scores: Mapping[str, Tensor], step: int) -> None:
    """Raise TrainingError if a score is NaN or infinite: where torch puts those in an order is not defined."""
    finite = torch.stack([score.isfinite().all() for score in scores.values()]).tolist()
    wrong = [attached[name].layer.stored for name, fine in zip(scores, finite, strict=True) if not fine]
    if wrong:
        raise TrainingError(
            f"scores of the blocks of {some_names(wrong)} are not finite in step {step + 1}: training diverged; "
            "lower the learning rate"
        )


def list_unranked(whys: Mapping[str, str]) -> str:
    """Names of one reason together: "a.weight, b.weight (reason); c.weight (another)"."""
    names: dict[str, list[str]] = {}
    for name, why in whys.items():
        names.setdefault(why, []).append(name)
    return "; ".join(f"{some_names(mine)} ({why})" for why, mine in names.items())
