"""The ways a layer can compute with one state of its weights, and which of them it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from threading import RLock
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from sapp_cli.checkpoint.block_sparse import Indices
from sapp_cli.codegen.support import kernels_work
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import (
    CPU_WAYS,
    DENSE,
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
from sapp_cli.runtime.dtypes import KERNEL_DTYPES, TRITON_DTYPES, say_where_there_is_no_kernel
from sapp_cli.runtime.gpu import is_captured, is_on_gpu, tf32_allowed, wait_for
from sapp_cli.runtime.plain import PlainProduct, dense_weight
from sapp_cli.runtime.torch_bsr import TorchBsrProduct, is_possible
from sapp_cli.runtime.triton_tiles import Tile, tiles

if TYPE_CHECKING:
    from sapp_cli.runtime.kernel import Kernel
    from sapp_cli.runtime.triton_product import TritonWeight

MOST_SEEN = 256
"""Shapes of x that are remembered."""
_MEASURED: dict[tuple[object, ...], Choice] = {}
"""Choices of layers that are alike: same matrix, blocks, share of kept blocks, dtype, device, bucket and mode."""

MEASURING = RLock()
"""Held by the thread that measures: two at once would disturb each other's times."""


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
        self._seen: dict[tuple[torch.Size, int], Way] = {}  # shapes of x, so that a known one costs no time
        self.choices: dict[tuple[int, int], Choice] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return self.way_for(x)(x)

    def way_for(self, x: Tensor) -> Way:
        """What to call for x of this shape, in this mode."""
        seen = x.shape, self._mode if self._on_gpu else torch.get_num_threads()
        way = self._seen.get(seen)
        return self._find(x, seen) if way is None else way

    def _find(self, x: Tensor, seen: tuple[torch.Size, int]) -> Way:
        """The way for x of this shape, in this mode."""
        (shape, mode), (out, columns) = seen, self._grid.matrix
        if shape[-1:] != (columns,):
            raise ValueError(f"x is {tuple(shape)}; its last dimension must be {columns}")
        rows = math.prod(shape[:-1])
        if rows == 0:
            return lambda x: x.new_empty(*shape[:-1], out)
        key = bucket_of(rows), mode
        way = self._current.get(key)
        if way is None:
            flat = x.reshape(rows, columns)
            if is_captured(x):
                return _of_rows(self._undecided(key), shape, out)
            with MEASURING:
                way = self._current.get(key) or self._decide(key, flat)
        way = _for_shape(self.choices[key].way, way, shape, out)
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[seen] = way
        return way

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
        if self._way is None:
            say_where_there_is_no_kernel(self._values)
        names = self._names(bucket)
        kept = round(len(self._values) / max(1, self._grid.count), 2)
        alike = (self._grid, kept, self._values.dtype, self._values.device, self._bias is None, key, tuple(names))
        known = _MEASURED.get(alike)
        if known is None:
            problems: dict[str, str] = {}
            tried = ((name, self._try(name, bucket, x, problems)) for name in names)
            # As they will be called: what is settled once for a shape is half a microsecond of a small layer's four.
            ways = {
                name: _for_shape(name, way, x.shape, self._grid.matrix[0]) for name, way in tried if way is not None
            }
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
            kernel = generated_kernel(
                self._values, self._crow.cpu().numpy(), self._col.cpu().numpy(), self._bias, self._grid
            )
            return None if kernel is None else (kernel, self._copied(kernel.weight.values))
        if family(name) == TRITON:
            return self._triton(name, bucket)
        if name == TORCH_BSR:
            return self._torch_bsr()
        weight = dense_weight(self._values, self._crow, self._col, self._grid)
        way = dense_ways(weight, self._bias, rows).get(name)
        return None if way is None else (way, weight.nbytes)

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


def _for_shape(name: str, way: Way, shape: torch.Size, out: int) -> Way:
    """The way of this name for x (…, in) of this shape."""
    if name == KERNEL:
        return cast("Kernel", way).for_shape(tuple(shape))
    return way if name in (DENSE, ONEDNN) else _of_rows(way, shape, out)  # these two take any shape


def _of_rows(way: Way, shape: torch.Size, out: int) -> Way:
    """The way that takes rows (M, in), for x of this shape."""
    if len(shape) == 2:
        return way
    return lambda x: way(x.reshape(-1, shape[-1])).view(*shape[:-1], out)


def generated_kernel(
    values: Tensor, crow: Indices, columns: Indices, bias: Tensor | None, grid: BlockGrid, *, scattered: bool = False
) -> Kernel | None:
    """The generated kernel; None where there is none for this dtype or device, or code cannot be generated."""
    if not (values.is_cpu and values.dtype in KERNEL_DTYPES and kernels_work()):
        return None
    from sapp_cli.runtime.kernel import Kernel

    try:
        return Kernel(values, crow, columns, bias, grid, scattered=scattered)
    except RuntimeError:  # of LLVM, on a system that forbids new code
        return None


@lru_cache
def triton_is_there() -> bool:
    """True if Triton can be imported: it comes with a CUDA torch."""
    try:
        import triton
    except (ImportError, OSError, RuntimeError):
        return False
    return bool(triton.__version__)
