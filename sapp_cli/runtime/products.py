"""The ways a layer can compute with one state of its weights, and which of them it takes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import DENSE, KERNEL, ONEDNN, PLAIN, Choice, Way, bucket_of, choose, dense_ways
from sapp_cli.runtime.plain import PlainProduct, dense_weight

if TYPE_CHECKING:
    from sapp_cli.runtime.kernel import Kernel

KERNEL_DTYPES = (torch.float32, torch.bfloat16)

_MEASURED: dict[tuple[object, ...], Choice] = {}
"""Choices of layers that are alike: same matrix, blocks, share of kept blocks, dtype, bucket and threads."""


class Products:
    """x Wᵀ + bias for weights that do not change any more; ways are prepared when they are first needed."""

    def __init__(
        self,
        values: Tensor,
        crow: Tensor,
        col: Tensor,
        bias: Tensor | None,
        grid: BlockGrid,
        dtype: torch.dtype,
        way: str | None,
    ) -> None:
        """Of checked indices; `way` None: the fastest one."""
        self._values = values.detach().to(dtype)
        self._crow, self._col = crow.clone(), col.clone()  # nobody may change them between the check and the use
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._grid = grid
        self._way = way
        self.plain = PlainProduct(self._values, self._crow, self._col, self._bias, grid)
        self._prepared: dict[tuple[str, int], Way] = {}
        self._copies: dict[tuple[str, int], int] = {}
        self._current: dict[tuple[int, int], Way] = {}
        self.choices: dict[tuple[int, int], Choice] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(M, in) -> (M, out)."""
        rows = len(x)
        if rows == 0:
            return x.new_empty(0, self._grid.matrix[0])
        key = bucket_of(rows), torch.get_num_threads()
        way = self._current.get(key)
        if way is None:
            way = self._decide(key, x)
        return way(x)

    @property
    def bytes(self) -> int:
        """Of the block-sparse weight, and of the copies of it that the ways in use need."""
        own = self._values.nbytes + self._crow.nbytes + self._col.nbytes
        return own + sum(self._copies[place] for place in self._prepared)

    def _decide(self, key: tuple[int, int], x: Tensor) -> Way:
        bucket, _ = key
        names = [self._way] if self._way else [KERNEL, PLAIN, DENSE, ONEDNN]
        kept = round(len(self._values) / max(1, self._grid.count), 2)
        alike = (self._grid, kept, self._values.dtype, self._values.device, self._bias is None, key, tuple(names))
        known = _MEASURED.get(alike)
        if known is None:
            prepared = ((name, self._prepare(name, bucket, len(x))) for name in names)
            ways = {name: way for name, way in prepared if way is not None}
            if not ways:
                what = f"{self._values.dtype} on {self._values.device}"
                raise ValueError(f"the way '{self._way}' is not possible for {what} here; leave it out")
            known = _MEASURED[alike] = choose(ways, x)
        self.choices[key] = known
        way = self._prepare(known.way, bucket, len(x))
        assert way is not None, f"{known.way} was chosen and is not possible"
        self._current[key] = way
        # What lost is not kept: a dense weight would cost the memory that pruning saved.
        in_use = {(choice.way, self._slot(choice.way, choice.bucket)) for choice in self.choices.values()}
        self._prepared = {place: ready for place, ready in self._prepared.items() if place in in_use}
        return way

    def _slot(self, name: str, bucket: int) -> int:
        """OneDNN packs for a size of batch; the other ways are one for all."""
        return bucket if name == ONEDNN else 0

    def _prepare(self, name: str, bucket: int, rows: int) -> Way | None:
        """The way, ready to be called; None where this torch or this dtype does not have it."""
        place = name, self._slot(name, bucket)
        if place in self._prepared:
            return self._prepared[place]
        self._copies[place] = 0
        way: Way | None
        if name == KERNEL:
            way = self._kernel()
            shared = way is None or way.weight.values.data_ptr() == self._values.data_ptr()
            self._copies[place] = 0 if way is None or shared else way.weight.values.nbytes
        elif name == PLAIN:
            way = self.plain
        else:
            weight = dense_weight(self._values, self._crow, self._col, self._grid)
            way = dense_ways(weight, self._bias, rows).get(name)
            self._copies[place] = weight.nbytes
        if way is not None:
            self._prepared[place] = way
        return way

    def _kernel(self) -> Kernel | None:
        """The generated kernel; None where there is none for this dtype or device, or code cannot be generated."""
        if not (self._values.is_cpu and self._values.dtype in KERNEL_DTYPES and kernels_work()):
            return None
        from sapp_cli.runtime.kernel import Kernel

        try:
            return Kernel(self._values, self._crow.numpy(), self._col.numpy(), self._bias, self._grid)
        except RuntimeError:  # of LLVM, on a system that forbids new code
            return None


@lru_cache
def kernels_work() -> bool:
    """True if llvmlite is there and knows this processor."""
    try:
        from sapp_cli.runtime.isa import host_isas

        return bool(host_isas())
    except (ImportError, OSError, RuntimeError):
        return False
