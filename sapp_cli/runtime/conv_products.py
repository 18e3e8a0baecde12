"""The ways a convolution can compute with one state of its weights, and which of them it takes.

Block-sparse: a 1×1 convolution is the product of a Linear over pixels; any other one is that product over its windows, copied
together a slab at a time. Dense: as the model computed it, with the weight in channels-last memory, or packed for oneDNN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sapp_cli.codegen.support import kernels_work
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import DENSE, KERNEL, ONEDNN, PLAIN, Way
from sapp_cli.runtime.conv_choice import (
    CPU_CONV_WAYS,
    GPU_CONV_WAYS,
    SPARSE_WAYS,
    ConvChoice,
    choose_conv,
    conv_bucket_of,
)
from sapp_cli.runtime.conv_geometry import ConvGeometry, Windows
from sapp_cli.runtime.conv_slabs import OverSlabs
from sapp_cli.runtime.dtypes import say_where_there_is_no_kernel
from sapp_cli.runtime.plain import dense_weight
from sapp_cli.runtime.products import MEASURING, MOST_SEEN, Products

if TYPE_CHECKING:
    from sapp_cli.runtime.weight_state import WeightState
    from sapp_cli.runtime.window_product import WindowProduct

CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

_MEASURED: dict[tuple[object, ...], ConvChoice] = {}
"""Choices of convolutions that are alike."""


@dataclass(frozen=True)
class ConvSettings:
    """What one convolution does with a weight."""

    geometry: ConvGeometry
    way: str | None = None
    """None: the fastest one."""
    keep_format: bool = False
    """Y lies in memory as x does."""


class ConvProducts:
    """x (N, C, …) -> y (N, C_out, O…) for weights that do not change any more; ways are prepared when they are first needed."""

    def __init__(
        self,
        settings: ConvSettings,
        grid: BlockGrid,
        values: Tensor,
        crow: Tensor,
        col: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Of checked indices."""
        self._geometry, self._grid = settings.geometry, grid
        self._values, self._crow, self._col = values.detach().to(dtype), crow.clone(), col.clone()
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._way, self._keep_format = settings.way, settings.keep_format
        self._prepared: dict[tuple[str, int], _Ready] = {}
        self._current: dict[tuple[int, bool, int], Way] = {}
        self._seen: dict[tuple[object, ...], Way] = {}  # sizes of x, so that a known one costs no time
        self.choices: dict[tuple[int, bool, int], ConvChoice] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, …) or (C, …) of one image."""
        seen = x.shape, x.stride(), torch.get_num_threads()
        way = self._seen.get(seen)
        return self._find(x, seen)(x) if way is None else way(x)

    def _find(self, x: Tensor, seen: tuple[object, ...]) -> Way:
        """The way for inputs of this size, layout and number of threads."""
        batch = self._geometry.batch(x)
        size = self._geometry.output_size(tuple(batch.shape[2:]))
        outputs = len(batch) * math.prod(size)
        if outputs == 0:
            return lambda x: x.new_empty(len(x), self._grid.matrix[0], *size)
        key = conv_bucket_of(outputs), is_channels_last(batch), torch.get_num_threads()
        way = self._current.get(key)
        if way is None:
            with MEASURING:
                way = self._current.get(key) or self._decide(key, batch)
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        if batch is x:
            self._seen[seen] = way
            return way
        of_batch = way
        found = self._seen[seen] = lambda x: of_batch(x.unsqueeze(0)).squeeze(0)
        return found

    @property
    def bytes(self) -> int:
        """Of the block-sparse weight, and of the copies of it that the ways in use need."""
        own = self._values.nbytes + self._crow.nbytes + self._col.nbytes
        return own + sum(way.bytes for way in self._prepared.values())

    def _decide(self, key: tuple[int, bool, int], x: Tensor) -> Way:
        bucket = key[0]
        if self._way is None:
            say_where_there_is_no_kernel(self._values)
        names = [self._way] if self._way else CPU_CONV_WAYS if self._values.is_cpu else GPU_CONV_WAYS
        kept = round(len(self._values) / max(1, self._grid.count), 2)
        weights = self._grid, kept, self._values.dtype, self._values.device, self._bias is None
        alike = (self._geometry, weights, self._keep_format, key, tuple(names))
        known = _MEASURED.get(alike)
        if known is None:
            ways = {name: way.run for name, way in self._possible(names, bucket, x)}
            if not ways:
                what = f"{self._values.dtype} on {self._values.device}"
                raise ValueError(f"the way '{self._way}' is not possible for {what} here; leave it out")
            known = _MEASURED[alike] = choose_conv(ways, x, key)
        self.choices[key] = known
        way = self._prepare(known.way, bucket, x)
        assert way is not None, f"{known.way} was chosen and is not possible"
        self._current[key] = way.run
        # What lost is not kept: a dense weight would cost the memory that pruning saved.
        in_use = {(choice.way, _slot(choice.way, choice.bucket)) for choice in self.choices.values()}
        self._prepared = {place: ready for place, ready in self._prepared.items() if place in in_use}
        return way.run

    def _possible(self, names: Sequence[str], bucket: int, x: Tensor) -> Iterator[tuple[str, _Ready]]:
        """Those of the ways that there are here; plain torch only where there is no kernel: measuring takes its time, too."""
        has_kernel = False
        for name in names:
            way = None if name == PLAIN and has_kernel else self._prepare(name, bucket, x)
            if way is not None:
                has_kernel |= name in SPARSE_WAYS
                yield name, way

    def _prepare(self, name: str, bucket: int, x: Tensor) -> _Ready | None:
        """The way, ready to be called; None where this torch or this dtype does not have it."""
        place = name, _slot(name, bucket)
        found = self._prepared.get(place)
        if found is None:
            found = self._make(name, x)
            if found is not None:
                self._prepared[place] = found
        return found

    def _make(self, name: str, x: Tensor) -> _Ready | None:
        made = self._block_sparse(name, x) if name in SPARSE_WAYS else self._dense(name, x)
        if made is None or not self._keep_format:
            return made
        run = made.run
        return replace(made, run=lambda x: run(x).contiguous() if x.is_contiguous() else run(x))

    def _block_sparse(self, name: str, x: Tensor) -> _Ready | None:
        grid, col, windows = self._grid, self._col, None
        if not self._geometry.pointwise:
            direct = self._window_product() if name == KERNEL else None
            if direct is not None:
                return _Ready(
                    direct, 0 if direct.values.data_ptr() == self._values.data_ptr() else direct.values.nbytes
                )
            windows = Windows(self._geometry, grid, col.cpu().numpy())
            grid = replace(grid, matrix=(grid.matrix[0], windows.width))
            col = torch.from_numpy(windows.columns).to(col.device)
        product = Products(self._values, self._crow, col, self._bias, grid, self._values.dtype, name)
        try:
            product(x.new_zeros(1, grid.matrix[1]))
        except ValueError:  # no such way for this dtype or device
            return None
        run = OverSlabs(self._geometry, product, windows) if windows else over_pixels(product, self._geometry)
        return _Ready(run, product.bytes - self._values.nbytes)

    def _window_product(self) -> WindowProduct | None:
        if not (self._values.is_cpu and kernels_work()):
            return None
        from sapp_cli.runtime.window_product import WindowProduct

        return WindowProduct.of(
            self._geometry, self._values, self._crow.numpy(), self._col.numpy(), self._bias, self._grid
        )

    def _dense(self, name: str, x: Tensor) -> _Ready | None:
        geometry, bias = self._geometry, self._bias
        weight = conv_weight(dense_weight(self._values, self._crow, self._col, self._grid), geometry)
        if name == ONEDNN:
            return _packed(weight.contiguous(), bias, geometry, x)
        memory_format = torch.contiguous_format if name == DENSE else MEMORY_FORMATS.get(geometry.axes)
        if memory_format is None:
            return None
        # Not `contiguous`: of a 1×1 weight both formats are, and torch takes the one that the strides suggest.
        weight = weight.clone(memory_format=memory_format)
        return _Ready(dense_convolution(weight, bias, geometry), weight.nbytes)


def convolution_of(state: WeightState, settings: ConvSettings, dtype: torch.dtype) -> ConvProducts:
    """The ways to convolve x of this dtype with the weight, a matrix (C_out, kernel…·C)."""
    found = state.convolutions.get((settings, dtype))
    if found is None:
        found = state.convolutions[settings, dtype] = ConvProducts(settings, state.grid, *state.tensors, dtype)
    return found


@dataclass(frozen=True)
class _Ready:
    """A way that can be called."""

    run: Way
    bytes: int
    """That it holds besides the block-sparse weight."""


def is_channels_last(x: Tensor) -> bool:
    """True if the channels of a pixel lie together, and the pixels one after the other."""
    return x.movedim(1, -1).is_contiguous()


def conv_weight(matrix: Tensor, geometry: ConvGeometry) -> Tensor:
    """The weight (C_out, C, kernel…) of the matrix (C_out, kernel…·C), a view."""
    return matrix.view(matrix.shape[0], *geometry.kernel, geometry.channels).movedim(-1, 1)


def dense_convolution(weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Way:
    """What the dense layer computes."""
    convolution, stride, dilation = CONVOLUTIONS[geometry.axes - 1], geometry.stride, geometry.dilation
    padding = geometry.even_padding
    if padding is not None:
        return lambda x: convolution(x, weight, bias, stride, padding, dilation)
    return lambda x: convolution(geometry.pad(x), weight, bias, stride, 0, dilation)


def over_pixels(product: Products, geometry: ConvGeometry) -> Way:
    """A 1×1 convolution: the product over pixels; y is channels-last."""
    axes = range(1, geometry.axes + 1)
    pixel_last, pixel_first = (0, *(axis + 1 for axis in axes), 1), (0, geometry.axes + 1, *axes)
    if set(geometry.stride) == {1}:
        return lambda x: product(x.permute(pixel_last)).permute(pixel_first)
    steps = tuple(slice(None, None, step) for step in (1, 1, *geometry.stride))
    return lambda x: product(x[steps].permute(pixel_last)).permute(pixel_first)


def _packed(weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, x: Tensor) -> _Ready | None:
    """The dense convolution with its weight packed for oneDNN; None where there is none."""
    padding = geometry.even_padding
    if (
        geometry.axes == 1
        or padding is None
        or not weight.is_cpu
        or weight.dtype not in (torch.float32, torch.bfloat16)
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        return None
    try:
        # What torch's own compiler uses for frozen weights; it has no other name.
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, geometry.stride, geometry.dilation, 1, list(x.shape)
        )
        convolution = torch.ops.mkldnn._convolution_pointwise
        settings: tuple[Any, ...] = padding, geometry.stride, geometry.dilation, 1, "none", [], ""
        convolution(x, packed, bias, *settings)
    except (AttributeError, RuntimeError):
        return None
    return _Ready(lambda x: convolution(x, packed, bias, *settings), weight.nbytes)


def _slot(name: str, bucket: int) -> int:
    """OneDNN packs for a size of x; the other ways are one for all."""
    return bucket if name == ONEDNN else -1
