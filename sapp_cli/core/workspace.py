"""Memory that is used again: a large tensor made anew in every step costs more in page faults than in arithmetic."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Workspace:
    """fp32 memory on the CPU for one tensor at a time, handed out again once nothing uses the tensor of before.

    A masked weight is dead when its gradient is made, and the gradient when the next weight is: the three share one piece of
    memory, and none is held beyond what a step needs anyway. Whatever still uses it, a second pass or somebody's own
    reference, keeps it, and gets company instead.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)
        self._lease: weakref.ref[_Lease] | None = None

    def like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of that shape; what is in it is anything."""
        in_use = self._lease is not None and self._lease() is not None
        if in_use or self._memory.size != tensor.numel():
            self._memory = np.empty(tensor.numel(), np.float32)  # in huge pages, where Linux has them
        lease = self._memory.view(_Lease)
        self._lease = weakref.ref(lease)
        return torch.from_numpy(lease).view(tensor.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workspace, ()  # a copy of a model has memory of its own


class _Lease(np.ndarray[Any, Any]):
    """Lives as long as a tensor that uses the memory under it."""
