"""What an output gives back to Python: dense tensors, whatever layout they are stored in."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from sapp_cli.bits import from_bits
from sapp_cli.checkpoint.source import open_checkpoint


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint of any kind, dense, in their own dtypes; tied names share one tensor.

    `model.load_state_dict(sapp.load_state_dict("OUT/sparse"))` is all it takes to use a block-sparse file. Warns if the
    file holds other weights as well. Raises CheckpointError for whatever is missing, damaged or unsafe.
    """
    checkpoint = open_checkpoint(path)
    for note in checkpoint.notes:
        warnings.warn(note, stacklevel=2)
    state = {}
    for name in checkpoint.dense_names():
        state[name] = from_bits(checkpoint.dense_array(name), checkpoint.dtype(name))
    return {**state, **{alias: state[stored] for alias, stored in checkpoint.tied.items()}}
