"""Tokens to predict for masked-lm, chosen by a pure function of seed, epoch and row (BERT: Devlin et al., 2019, §3.1).

L: tokens of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sapp_cli.errors import DataError
from sapp_cli.inputs.rows import IGNORED, TARGETS, Row
from sapp_cli.inputs.tokens import TextRows


def mask_tokens(
    ids: Tensor, special: Tensor, probability: float, random: np.random.Generator, *, mask_id: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (L,) of a row of tokens (L,): each one not `special` is predicted with `probability`.

    Of those, 80 % become the mask token, 10 % a random one, 10 % stay. Elsewhere the target is IGNORED.
    """
    draw, fate = torch.from_numpy(random.random((2, len(ids))))  # (L,) each
    other = torch.from_numpy(random.integers(vocabulary, size=len(ids)))
    chosen = (draw < probability) & ~special
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.9), other, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


class MaskedText(Dataset[Row]):
    """Rows of text with some tokens masked.

    The same row gets the same mask in the same epoch, whatever was drawn before and in however many processes: a
    resumed run equals an uninterrupted one, and evaluations, whose epoch never changes, are of the same tokens.
    """

    def __init__(self, rows: TextRows, probability: float, seed: int, part: int) -> None:
        if rows.tokenizer.mask_token_id is None:
            raise DataError("the tokenizer has no mask token, which objective.task masked-lm needs")
        self.rows = rows
        self.probability = probability
        self.seed = seed
        self.part = part  # 0 training, 1 validation: equal places in two files get masks of their own
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Masks of the next pass over the rows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        special = row.pop("special_tokens_mask").bool()
        random = np.random.default_rng([self.seed, self.part, self.epoch, self.rows.numbers[index]])
        tokenizer = self.rows.tokenizer
        row["input_ids"], row[TARGETS] = mask_tokens(
            row["input_ids"],
            special,
            self.probability,
            random,
            mask_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
        )
        return row
