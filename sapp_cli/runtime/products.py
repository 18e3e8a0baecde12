"""The ways a layer can compute with one state of its weights, and which of them it takes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import (
    CPU_WAYS,
    GPU_WAYS,
    KERNEL,
    ONEDNN,
    PLAIN,
    TORCH_BSR,
    TRITON,
    Choice,
    Way,
    bucket_name,
    bucket_of,
    choose,
    dense_ways,
    family,
    most_rows,
)
from sapp_cli.runtime.gpu import is_captured, is_on_gpu, tf32_allowed, wait_for
from sapp_cli.runtime.plain import PlainProduct, dense_weight
from sapp_cli.runtime.torch_bsr import TorchBsrProduct, is_possible
from sapp_cli.runtime.triton_tiles import Tile, tiles

if TYPE_CHECKING:
    from sapp_cli.runtime.kernel import Kernel
    from sapp_cli.runtime.triton_product import TritonWeight

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_MEASURED: dict[tuple[object, ...], Choice] = {}
"""Choices of layers that are alike: same matrix, blocks, share of kept blocks, dtype, device, bucket and mode."""


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
        self._on_gpu = is_on_gpu(self._values)
        self.plain = PlainProduct(self._values, self._crow, self._col, self._bias, grid)
        self._for_triton: TritonWeight | None = None  # one for all tiles
        self._prepared: dict[tuple[str, int], Way] = {}
        self._copies: dict[tuple[str, int], int] = {}  # bytes, by family of ways
        self._current: dict[tuple[int, int], Way] = {}
        self.choices: dict[tuple[int, int], Choice] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(M, in) -> (M, out)."""
        rows = len(x)
        if rows == 0:
            return x.new_empty(0, self._grid.matrix[0])
        key = bucket_of(rows), self._mode
        way = self._current.get(key)
        if way is None:
            way = self._undecided(key) if is_captured(x) else self._decide(key, x)
        return way(x)

    @property
    def bytes(self) -> int:
        """Of the block-sparse weight, and of the copies of it that the ways in use need."""
        own = self._values.nbytes + self._crow.nbytes + self._col.nbytes
        return own + sum(self._copies[place] for place in {(family(name), slot) for name, slot in self._prepared})

    @property
    def _mode(self) -> int:
        """What else the choice depends on: on a GPU whether float32 may be multiplied as TF32, on a CPU the threads."""
        if self._on_gpu:
            return int(self._values.dtype == torch.float32 and tf32_allowed())
        return torch.get_num_threads()

    def _decide(self, key: tuple[int, int], x: Tensor) -> Way:
        bucket, _ = key
        names = self._names(bucket)
        kept = round(len(self._values) / max(1, self._grid.count), 2)
        alike = (self._grid, kept, self._values.dtype, self._values.device, self._bias is None, key, tuple(names))
        known = _MEASURED.get(alike)
        if known is None:
            problems: dict[str, str] = {}
            tried = ((name, self._try(name, bucket, x, problems)) for name in names)
            ways = {name: way for name, way in tried if way is not None}
            if not ways:
                what = f"{self._values.dtype} on {self._values.device}"
                why = "".join(f" ({problem})" for problem in dict.fromkeys(problems.values()))
                raise ValueError(f"the way '{self._way}' is not possible for {what} here{why}; leave it out")
            known = _MEASURED[alike] = replace(choose(ways, x), problems=problems)
        self.choices[key] = known
        way = self._prepare(known.way, bucket, len(x))
        assert way is not None, f"{known.way} was chosen and is not possible"
        self._current[key] = way
        # What lost is not kept: a dense weight would cost the memory that pruning saved.
        in_use = {(choice.way, self._slot(choice.way, choice.bucket)) for choice in self.choices.values()}
        self._prepared = {place: ready for place, ready in self._prepared.items() if place in in_use}
        if not any(family(name) == TRITON for name, _ in self._prepared):
            self._for_triton = None
        return way

    def _undecided(self, key: tuple[int, int]) -> Way:
        """A way without measuring, which would break the capture of a CUDA graph: that of the nearest bucket with one, else
        plain torch. The graph keeps it; the next batch outside of a capture is measured.
        """
        (bucket, mode), threads = key, torch.get_num_threads()
        known = [other for other in self._current if other[1] == mode]
        nearest = min(known, key=lambda other: abs(other[0] - bucket), default=None)
        why = "not measured while a CUDA graph is captured"
        if nearest is None:
            self.choices[key] = Choice(PLAIN, bucket, threads, {}, why=why)
            return self.plain
        why += f"; as for {bucket_name(nearest[0])}"
        self.choices[key] = Choice(self.choices[nearest].way, bucket, threads, {}, why=why)
        return self._current[nearest]

    def _names(self, bucket: int) -> list[str]:
        """Of all ways to try, that of Triton once for each tile."""
        wanted = (self._way,) if self._way else GPU_WAYS if self._on_gpu else CPU_WAYS
        return [name for way in wanted for name in (self._tiles(bucket) if way == TRITON else [way])]

    def _tiles(self, bucket: int) -> dict[str, Tile]:
        """Name of the way -> tile."""
        tf32 = self._on_gpu and bool(self._mode)
        found = tiles(most_rows(bucket), self._grid.block, self._values.dtype, tf32=tf32)
        return {tile.name: tile for tile in found}

    def _try(self, name: str, bucket: int, x: Tensor, problems: dict[str, str]) -> Way | None:
        """The way, if there is one; those that need a compiler, or what is private to torch, are called once to know."""
        if family(name) not in (TRITON, TORCH_BSR):
            return self._prepare(name, bucket, len(x))
        try:
            way = self._prepare(name, bucket, len(x))
            if way is not None:
                way(x)
                wait_for(x)
        except Exception as error:
            # Of any kind: no C compiler, too little shared memory, an interface that has changed.
            text = str(error).strip().partition("\n")[0]
            problems[name] = f"{type(error).__name__}: {text}" if text else type(error).__name__
            self._prepared.pop((name, self._slot(name, bucket)), None)
            return None
        return way

    def _slot(self, name: str, bucket: int) -> int:
        """OneDNN packs for a size of batch; the other ways are one for all."""
        return bucket if name == ONEDNN else 0

    def _prepare(self, name: str, bucket: int, rows: int) -> Way | None:
        """The way, ready to be called; None where this torch, this device or this dtype does not have it."""
        slot = self._slot(name, bucket)
        if (name, slot) not in self._prepared:
            found = self._make(name, bucket, rows)
            if found is None:
                return None
            self._prepared[name, slot], self._copies[family(name), slot] = found
        return self._prepared[name, slot]

    def _make(self, name: str, bucket: int, rows: int) -> tuple[Way, int] | None:
        """(the way, bytes of its copy of the weight)."""
        if name == PLAIN:
            return self.plain, 0
        if name == KERNEL:
            kernel = self._kernel()
            return None if kernel is None else (kernel, self._copied(kernel.weight.values))
        if family(name) == TRITON:
            return self._triton(name, bucket)
        if name == TORCH_BSR:
            return self._torch_bsr()
        weight = dense_weight(self._values, self._crow, self._col, self._grid)
        way = dense_ways(weight, self._bias, rows).get(name)
        return None if way is None else (way, weight.nbytes)

    def _kernel(self) -> Kernel | None:
        """The generated kernel; None where there is none for this dtype or device, or code cannot be generated."""
        if not (self._values.is_cpu and self._values.dtype in KERNEL_DTYPES and kernels_work()):
            return None
        from sapp_cli.runtime.kernel import Kernel

        try:
            return Kernel(self._values, self._crow.numpy(), self._col.numpy(), self._bias, self._grid)
        except RuntimeError:  # of LLVM, on a system that forbids new code
            return None

    def _triton(self, name: str, bucket: int) -> tuple[Way, int] | None:
        """Our Triton kernel with the tile of this name; None without a GPU or without Triton."""
        if not (self._on_gpu and self._values.dtype in TRITON_DTYPES and triton_is_there()):
            return None
        from sapp_cli.runtime.triton_product import TritonProduct, TritonWeight

        if self._for_triton is None:
            self._for_triton = TritonWeight.of(self._values, self._crow, self._col, self._bias, self._grid)
        product = TritonProduct(self._for_triton, self._tiles(bucket)[name])
        return product, self._copied(self._for_triton.values)

    def _torch_bsr(self) -> tuple[Way, int] | None:
        """The Triton kernel of torch; None without a GPU or Triton, and for blocks that it does not take."""
        if not (self._on_gpu and is_possible(self._grid.block, self._values.dtype) and triton_is_there()):
            return None
        product = TorchBsrProduct(self._values, self._crow, self._col, self._bias, self._grid)
        return product, product.bytes

    def _copied(self, values: Tensor) -> int:
        """Bytes of a way's values; 0 where they are the layer's own."""
        return 0 if values.data_ptr() == self._values.data_ptr() else values.nbytes


@lru_cache
def kernels_work() -> bool:
    """True if llvmlite is there and knows this processor."""
    try:
        from sapp_cli.runtime.isa import host_isas

        return bool(host_isas())
    except (ImportError, OSError, RuntimeError):
        return False


@lru_cache
def triton_is_there() -> bool:
    """True if Triton can be imported: it comes with a CUDA torch."""
    try:
        import triton
    except (ImportError, OSError, RuntimeError):
        return False
    return bool(triton.__version__)
