"""Tensors of which FSDP may have given each process some rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor; where FSDP has spread it, put together from the rows of all processes, which must all ask for it."""
    put_together: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if put_together is None else put_together()


def held(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, in place: all of them, unless FSDP has spread it."""
    local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def rows_held(tensor: Tensor, full: Tensor) -> Tensor:
    """Of `full`, as long as the tensor, those rows that this process holds of the tensor."""
    if held(tensor) is tensor:
        return full
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    each = -(-tensor.shape[0] // mesh.size())  # every process has so many rows, the last ones fewer or none
    start = min(tensor.shape[0], each * mesh.get_local_rank())
    return full[start : start + held(tensor).shape[0]]


@torch.no_grad()
def put(tensor: Tensor, full: Tensor) -> None:
    """Write `full` into the tensor, each process the rows it holds."""
    assert tensor.shape == full.shape, f"{tuple(full.shape)} does not fit {tuple(tensor.shape)}"
    held(tensor).copy_(rows_held(tensor, full))
