"""The click-through network of the SequentialAttention++ paper (§4.3), for rows as `source: criteo` gives them.

B: rows of a batch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sapp_cli.inputs.criteo_text import CATEGORIES, NUMBERS


class CriteoNetwork(nn.Module):
    """13 numbers and 26 categories, each embedded to `width` 10, through three `hidden` 400-wide layers to one logit.

    A number x becomes x·v + b with a vector v and a b of its own, a missing one a third vector; the paper does not say how it
    embeds numbers. `buckets` is that of `data.criteo`.
    """

    offsets: Tensor  # (26,): where each column's rows of the table begin

    def __init__(self, buckets: int, width: int, hidden: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.categories = nn.Embedding(CATEGORIES * buckets, width)
        self.register_buffer("offsets", buckets * torch.arange(CATEGORIES), persistent=False)
        self.slopes = nn.Parameter(torch.empty(NUMBERS, width))
        self.shifts = nn.Parameter(torch.zeros(NUMBERS, width))
        self.missing = nn.Parameter(torch.empty(NUMBERS, width))
        for weight in (self.categories.weight, self.slopes, self.missing):
            nn.init.normal_(weight, std=width**-0.5)
        self.layers = nn.Sequential(
            OrderedDict(
                dense1=nn.Linear((NUMBERS + CATEGORIES) * width, hidden),
                relu1=nn.ReLU(),
                dense2=nn.Linear(hidden, hidden),
                relu2=nn.ReLU(),
                dense3=nn.Linear(hidden, hidden),
                relu3=nn.ReLU(),
                logit=nn.Linear(hidden, 1),
            )
        )

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """(B, 13) and (B, 26) -> logits (B,)."""
        x = numbers.unsqueeze(-1)  # (B, 13, 1)
        known = torch.nan_to_num(x) * self.slopes + self.shifts
        of_numbers = torch.where(torch.isnan(x), self.missing, known)  # (B, 13, width)
        of_categories = self.categories(categories + self.offsets)  # (B, 26, width)
        features = torch.cat((of_numbers, of_categories), 1).flatten(1)  # (B, 39·width)
        logits: Tensor = self.layers(features)
        return logits.squeeze(-1)


def criteo_network(buckets: int = 100_000, width: int = 10, hidden: int = 400) -> nn.Module:
    """The network, untrained: `model.factory` of recipes/criteo.yaml."""
    return CriteoNetwork(buckets, width, hidden)
