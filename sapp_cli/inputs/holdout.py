"""Validation rows held out of the training rows by what is in them, not by where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from sapp_cli.errors import DataError


def digest(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """SHA-256 of a row given as (column, canonical bytes); lengths are hashed too, so that no two rows run together."""
    state = hashlib.sha256()
    for name, content in parts:
        for piece in (name.encode(), content):
            state.update(len(piece).to_bytes(8, "little"))
            state.update(piece)
    return state.digest()


def hold_out(digests: Sequence[bytes], share: float, origin: str) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those held out: the ⌊share·n + ½⌋ of least digest, at least one.

    The choice depends on the rows alone, not on their order nor on the seed: runs with several seeds are judged by the
    same rows. Equal rows go together, which can make the share a little larger; no row is on both sides.
    Raises DataError where nothing is left to train on.
    """
    count = max(1, int(share * len(digests) + 0.5))
    limit = sorted(digests)[count - 1]
    train = [index for index, value in enumerate(digests) if value > limit]
    validation = [index for index, value in enumerate(digests) if value <= limit]
    if not train:
        raise DataError(
            f"{origin}: holding out {share:g} of its {len(digests)} rows ({len(set(digests))} different) leaves none "
            "to train on; name validation rows in data.files.validation"
        )
    return train, validation
