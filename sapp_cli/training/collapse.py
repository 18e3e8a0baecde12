"""A metric that falls to what guessing gives while the masks are fixed, and stays there: nothing is left to train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sapp_cli.core.schedule import Moment, Phase
from sapp_cli.errors import TrainingError
from sapp_cli.inputs.data import DataSets
from sapp_cli.inputs.rows import Targets
from sapp_cli.recipe.schema import Recipe
from sapp_cli.training.batches import evaluation_shares
from sapp_cli.training.objectives import Objective
from sapp_cli.training.objectives.forward import targets_of

NOTHING_LEFT = 0.05  # of the way from guessing to the dense model
WORTH_A_LOOK = 0.1  # a dense model less than that above guessing, relative to either, can fall nowhere
RECOVERY = 0.25  # of a sparse phase: a dip right after sparsification is normal
PATIENCE = 2  # evaluations running
FAR = 2.0
"""Times that a figure is worse than guessing before it is worth a warning."""
ROWS = 500  # whose targets are looked at


@dataclass(frozen=True)
class Guess:
    """What a prediction that ignores its input reaches in a metric."""

    metric: str
    value: float
    higher_is_better: bool

    def is_far_above(self, value: float, rows: int) -> bool:
        """True if a model that reached `value` on so many rows is far worse, and not by the chance of a few rows."""
        if not self.higher_is_better:
            return value > FAR * self.value
        spread = math.sqrt(max(self.value * (1 - self.value), 0) / max(rows, 1))
        return value < self.value / FAR and value < self.value - 3 * spread


class CollapseWatch:
    """Looks at the evaluations of a run. `suspects` between the first bad one and the next."""

    def __init__(self, guess: Guess | None, dense: Mapping[str, float], recipe: Recipe) -> None:
        """`dense`: the metrics of the checkpoint that came in. Without a guess nothing is ever found wrong."""
        self._guess, self._dense, self._recipe = guess, dense, recipe
        self._bad = 0

    @property
    def suspects(self) -> bool:
        return self._bad > 0

    def look(self, moment: Moment, metrics: Mapping[str, float]) -> None:
        """Look at an evaluation after the step of `moment`. Raises TrainingError where the model has collapsed."""
        recovered = moment.phase is Phase.SPARSE and moment.progress >= RECOVERY
        if self._guess is None or not recovered:
            return
        name, guess = self._guess.metric, self._guess.value
        dense, now = self._dense[name], metrics[name]
        ahead = dense - guess if self._guess.higher_is_better else guess - dense
        if ahead < WORTH_A_LOOK * max(abs(dense), abs(guess)):
            return
        left = (now - guess) / (dense - guess)
        self._bad = self._bad + 1 if not math.isfinite(now) or left <= NOTHING_LEFT else 0
        if self._bad >= PATIENCE:
            raise TrainingError(
                f"{name} is {now:.4g} in step {moment.step + 1} ({moment.name} phase), no better than guessing ({guess:.4g}), "
                f"where the dense model had {dense:.4g}: the network has collapsed. Lower optimizer.lr (now "
                f"{self._recipe.optimizer.rate:g}) or prune.sparsity (now {self._recipe.prune.sparsity:g}), or set "
                "train.stop_on_collapse: false to go on regardless"
            )


def guess_of(objective: Objective, model: nn.Module, data: DataSets) -> Guess | None:
    """What guessing reaches on the validation rows; None where that is not known, as for an objective of the user's own."""
    if objective.name in ("causal-lm", "masked-lm"):  # every token as likely as any other
        words = getattr(getattr(model, "config", None), "vocab_size", None)
        return Guess("loss", math.log(words), False) if isinstance(words, int) and words > 1 else None
    if objective.name == "embedding-distillation":  # unrelated directions
        return Guess("cosine", 0.0, True)
    if objective.name == "classification":  # always the most frequent class
        counts = torch.bincount(_targets(data).long().flatten())
        return Guess("accuracy", float(counts.max() / counts.sum()), True)
    if objective.name == "binary":  # always the share of ones, of each label its own
        shares = _targets(data).double().mean(0).flatten()
        entropies = -(torch.xlogy(shares, shares) + torch.xlogy(1 - shares, 1 - shares))
        return Guess("logloss", float(entropies.mean()), False)
    if objective.name == "regression":  # always the mean
        targets = _targets(data).double()
        return Guess("mse", float((targets - targets.mean(0)).square().mean()), False)
    return None


def _targets(data: DataSets) -> Tensor:
    """Those of the validation rows, or of some that are spread evenly over them."""
    known = getattr(data.validation, "targets", None)
    if isinstance(known, Targets):
        return known.values
    looked_at = next(evaluation_shares(data, ROWS, ROWS, 0, 1))
    return torch.stack([targets_of(data.validation[index]) for index in looked_at])
