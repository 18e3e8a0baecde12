"""The dtypes that there are block-sparse kernels for, and a word where there is none."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

LOG = logging.getLogger("sapp")

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
"""On a CPU."""
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""On a GPU."""

_TOLD: set[tuple[str, torch.dtype]] = set()


def say_where_there_is_no_kernel(values: Tensor) -> None:
    """One line of the logger "sapp", once in a process for each dtype and kind of device."""
    device, dtype = values.device.type, values.dtype
    known = KERNEL_DTYPES if device == "cpu" else TRITON_DTYPES
    if dtype in known or (device, dtype) in _TOLD:
        return
    _TOLD.add((device, dtype))
    names = ", ".join(map(str, known))
    LOG.warning(
        "block-sparse layers compute in %s on this %s without a kernel, most of them as dense layers: expected one of %s; "
        "call model.to(torch.bfloat16), or autocast to it",
        dtype,
        device,
        names,
    )
