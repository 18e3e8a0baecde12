"""What an output gives back to Python: dense tensors, whatever layout they are stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.inputs.models import TORCH_DTYPES


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint of any kind, dense, in their own dtypes; tied names share one tensor.

    `model.load_state_dict(sapp.load_state_dict("OUT/sparse"))` is all it takes to use a block-sparse file. Raises
    CheckpointError for whatever is missing, damaged or unsafe.
    """
    checkpoint = open_checkpoint(path)
    state = {}
    for name in checkpoint.dense_names():
        bits = np.array(checkpoint.dense_array(name))  # a copy that may be written to
        dtype = TORCH_DTYPES[checkpoint.dtype(name)]
        unsigned = {1: np.uint8, 2: np.int16}.get(bits.dtype.itemsize)
        stands_for_floats = bits.dtype.kind == "u" and dtype.is_floating_point and unsigned is not None
        state[name] = torch.from_numpy(bits.view(unsigned)).view(dtype) if stands_for_floats else torch.from_numpy(bits)
    return {**state, **{alias: state[stored] for alias, stored in checkpoint.tied.items()}}
