"""Tokens to be predicted: cross-entropy and perplexity, every token counted alike however long its row.

B: rows of a batch.  L: tokens of a row.  V: tokens of the vocabulary.  n: tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sapp_cli.errors import SettingError
from sapp_cli.inputs.rows import IGNORED, Targets
from sapp_cli.training.objectives.distillation import kl_divergence
from sapp_cli.training.objectives.objective import means
from sapp_cli.training.objectives.supervised import Items


@dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of logits (B, L, V) and tokens (B, L); in a causal LM a token's logits predict the next one."""

    causal: bool
    metrics: ClassVar[Mapping[str, bool]] = {"perplexity": False, "loss": False}

    @property
    def name(self) -> str:
        return "causal-lm" if self.causal else "masked-lm"

    def items(self, logits: Tensor, targets: Tensor) -> Items:
        if logits.dim() != 3 or targets.shape != logits.shape[:2]:
            problem = (
                f"{self.name} takes logits (rows, tokens, vocabulary) and one target a token, not "
                f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            )
            raise SettingError([("objective.task", problem)])
        if self.causal:
            # The targets move and not the logits, of which a slice would be a copy.
            following = F.pad(targets[:, 1:], (0, 1), value=IGNORED).flatten()
            return Items(logits.flatten(0, 1), following, following != IGNORED)  # (B·L, V), (B·L,)
        counted = targets != IGNORED
        return Items(logits[counted], targets[counted])  # (n, V), (n,): few of the tokens are masked

    def losses(self, items: Items) -> Tensor:
        return F.cross_entropy(items.logits, items.targets, ignore_index=IGNORED, reduction="none")

    def distances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return kl_divergence(student, teacher, temperature)

    def measures(self, items: Items) -> dict[str, Tensor]:
        return {"loss": self.losses(items)}

    def finish(self, reduced: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        loss = means(reduced)["loss"]
        # e^700 is near the largest float; JSON has no infinity.
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}

    def require_targets(self, targets: Targets, logits: Tensor) -> None:
        """Tokens are checked batch by batch, where they are padded."""
