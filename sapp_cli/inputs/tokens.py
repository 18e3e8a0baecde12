"""Texts as rows of tokens: the checkpoint's own tokenizer, rows cut and padded, or packed into pieces of one length.

L: tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from sapp_cli.checkpoint.damage import FETCH
from sapp_cli.errors import DataError, SettingError
from sapp_cli.inputs.files import is_pointer
from sapp_cli.inputs.hugging_face import offline_transformers
from sapp_cli.inputs.rows import IGNORED, TARGETS, Batch, Row, Targets
from sapp_cli.inputs.tables import Table

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tekken.json", "*.model", "*.tiktoken")
PADDED_TO = 8
"""Lengths are rounded up to a multiple of this, which tensor cores like."""


def load_tokenizer(folder: Path | None) -> Any:
    """The tokenizer in the checkpoint's folder; nothing is downloaded, no code of the folder runs.

    Raises SettingError without a folder, DataError where it has no tokenizer or a damaged one.
    """
    if folder is None:
        problem = "texts need the checkpoint's tokenizer: give a Hugging Face folder, or take source tensors or factory"
        raise SettingError([("data.source", problem)])
    if not any(any(folder.glob(name)) for name in VOCABULARIES):
        # transformers makes up a tokenizer of five tokens where there is only a config.json
        raise DataError(
            f"{folder} has no tokenizer ({', '.join(VOCABULARIES[:3])}, …); copy the one the model was trained with"
        )
    pointer = next((path for name in VOCABULARIES for path in folder.glob(name) if is_pointer(path)), None)
    if pointer is not None:
        raise DataError(f"{pointer} {FETCH}")
    with offline_transformers() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each kind of tokenizer raises what its parser raises
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            problem = f"the tokenizer in {folder} cannot be loaded: {reason}; copy the one the model was trained with"
            raise DataError(problem) from error


class TextRows(Dataset[Row]):
    """Some texts of a table, or pairs of texts, tokenized when they are asked for."""

    def __init__(
        self,
        table: Table,
        columns: Sequence[str],  # the text, or the two texts of a pair
        tokenizer: Any,
        *,
        max_length: int,
        values: Tensor | None,  # targets of all rows of the table (n,)
        numbers: Sequence[int],  # the rows in use
        mark_special: bool = False,  # add a `special_tokens_mask` (L,) of what the tokenizer put in, such as [CLS]
    ) -> None:
        self.texts = table.only(columns)
        self.columns = columns
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.values = values
        self.numbers = numbers
        self.mark_special = mark_special
        self.origin = table.origin

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        number = self.numbers[index]
        texts = self.texts[number]
        encoded = self.tokenizer(
            *(texts[name] for name in self.columns),
            truncation=True,
            max_length=self.max_length,
            return_special_tokens_mask=self.mark_special,
            verbose=False,
        )
        row = {name: torch.tensor(ids) for name, ids in encoded.items()}
        if self.values is not None:
            row[TARGETS] = self.values[number]
        return row

    @property
    def targets(self) -> Targets | None:
        if self.values is None:
            return None
        return Targets(self.values[torch.as_tensor(self.numbers)], self.numbers, self.origin)


class PackedText(Dataset[Row]):
    """Texts one after the other, cut into pieces of `length` tokens, the last maybe shorter. Targets are the inputs."""

    def __init__(self, tokens: np.ndarray[Any, np.dtype[np.int32]], length: int) -> None:
        self.tokens = tokens
        self.length = length

    def __len__(self) -> int:
        # A last piece of one token predicts nothing.
        return max(0, -(-(len(self.tokens) - 1) // self.length))

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        piece = torch.from_numpy(self.tokens[index * self.length : (index + 1) * self.length].astype(np.int64))  # (L,)
        return {"input_ids": piece, "attention_mask": torch.ones_like(piece), TARGETS: piece}


def pack(table: Table, column: str, tokenizer: Any, length: int, numbers: Sequence[int]) -> PackedText:
    """The texts of a table in pieces of `length` tokens, each text with an end-of-text token behind it.

    Raises DataError if the tokenizer has no such token, or the texts are too short to predict anything; SettingError for
    pieces of one token.
    """
    if length < 2:
        problem = f"{length} is too small; a piece of one token predicts nothing, so objective.task causal-lm needs 2"
        raise SettingError([("data.max_length", problem)])
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "the tokenizer has no end-of-text token (eos_token), which separates the texts of objective.task causal-lm"
        )
    texts = table.only([column])
    parts: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    for start in range(0, len(numbers), 1000):
        batch = [text for text in texts[list(numbers[start : start + 1000])][column] if text]
        if not batch:
            continue
        for ids in tokenizer(batch, verbose=False)["input_ids"]:
            whole = ids if ids and ids[-1] == end else [*ids, end]
            parts.append(np.array(whole, dtype=np.int32))
    packed = PackedText(np.concatenate(parts) if parts else np.empty(0, dtype=np.int32), length)
    if not len(packed):
        raise DataError(f"{table.origin}: column '{column}' has fewer than two tokens of text")
    return packed


@dataclass(frozen=True)
class Padding:
    """Rows -> a batch: what has a length is filled up behind to the longest row, rounded up to a multiple of 8."""

    fill: Mapping[str, int]  # per key
    max_length: int  # no row is padded beyond it
    vocabulary: int | None  # tokens of the model, if known
    whole: frozenset[str] = frozenset()  # keys with one value, or as many values, for every row

    def __call__(self, rows: list[Row]) -> Batch:
        batch = {key: self._stack(key, [row[key] for row in rows]) for key in rows[0]}
        greatest = int(batch["input_ids"].max())
        if self.vocabulary is not None and greatest >= self.vocabulary:  # on a GPU a crash without a word
            raise DataError(
                f"the tokenizer gives token {greatest}, the model has {self.vocabulary} tokens (vocab_size of its "
                "config.json); use the tokenizer the model was trained with"
            )
        return batch

    def _stack(self, key: str, values: list[Tensor]) -> Tensor:
        if key in self.whole or values[0].dim() == 0:
            return torch.stack(values)  # (rows,) or (rows, k)
        fill = self.fill.get(key, 0)
        longest = max(len(value) for value in values)
        length = max(longest, min(self.max_length, -(-longest // PADDED_TO) * PADDED_TO))
        return torch.stack([F.pad(value, (0, length - len(value)), value=fill) for value in values])  # (rows, L)


def padding(tokenizer: Any, config: Mapping[str, Any], max_length: int, *, labelled: bool = False) -> Padding:
    """The padding that goes with a tokenizer and the model of `config`; `labelled` rows have targets of their own length."""
    vocabulary = config.get("vocab_size")
    # The model's own comes first: it looks for it, to find a row's last token or its positions.
    tokens = (config.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id)
    known = (token for token in tokens if isinstance(token, int) and token >= 0)
    fill = {
        # The attention mask hides it: where no token is meant for it, any will do.
        "input_ids": next((token for token in known if not isinstance(vocabulary, int) or token < vocabulary), 0),
        "attention_mask": 0,
        "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        TARGETS: IGNORED,
    }
    whole = frozenset({TARGETS}) if labelled else frozenset()
    return Padding(fill, max_length, vocabulary if isinstance(vocabulary, int) else None, whole)
