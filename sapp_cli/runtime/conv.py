"""`BlockSparseConv`: an ordinary module in the place of a `torch.nn.Conv1d`, 2d or 3d whose weight is block-sparse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, is_autocast_enabled, nn
from torch.compiler import is_compiling

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.contexts import by_context, has_tangents, is_tracing, is_wrapped
from sapp_cli.runtime.conv_choice import CONV_WAYS, ConvChoice
from sapp_cli.runtime.conv_geometry import Conv, ConvGeometry
from sapp_cli.runtime.conv_operators import arguments_of, block_sparse_conv
from sapp_cli.runtime.conv_products import ConvProducts, ConvSettings, conv_weight, convolution_of, dense_convolution
from sapp_cli.runtime.linear import BlockSparseLinear
from sapp_cli.runtime.saved_state import ELSEWHERE, dense_conv_state, rename_conv_state
from sapp_cli.runtime.weight_state import WeightState


class BlockSparseConv(nn.Module):
    """y of a convolution of one group, its weight given by its kept blocks; for inference, the weights are frozen.

    `matrix` holds the weight: the block-sparse (C_out, kernel…·C) of the layout `conv`, channels fastest, and the bias.
    Stride, padding in every mode, dilation as of the dense layer; x (N, C, …), or (C, …) of one image.

    A forward pass takes the fastest of several ways, measured at the first input of a size and memory format (`choices`
    says which and why); set `way` to one of "kernel", "torch", "dense", "channels-last", "onednn" to have always the same.
    Outputs of block-sparse ways lie in memory channels-last, as those of a model in `torch.channels_last`, whatever
    x does; with `keep_format` they lie as x does, at the cost of a copy. Gradients reach x.
    """

    matrix: BlockSparseLinear
    _products: dict[torch.dtype, tuple[WeightState, ConvProducts]]

    def __init__(
        self, geometry: ConvGeometry, matrix: BlockSparseLinear, way: str | None = None, keep_format: bool = False
    ) -> None:
        """`matrix`: its columns are those of the geometry; its own `way` does not count."""
        super().__init__()
        if matrix.in_features != geometry.columns:
            raise ValueError(f"a weight of {matrix.in_features} columns for a convolution of {geometry.columns}")
        self.geometry = geometry
        self.matrix = matrix
        self.way = way
        self.keep_format = keep_format
        self._begin()

    @classmethod
    def from_dense(cls, conv: Conv, block: tuple[int, int], way: str | None = None) -> BlockSparseConv:
        """The blocks of the layer's weight that have something nonzero in them."""
        matrix = conv.weight.detach().movedim(1, -1).flatten(1)
        return cls(geometry_of(conv), BlockSparseLinear.from_weight(matrix, conv.bias, block), way)

    @classmethod
    def from_matrix(
        cls,
        conv: Conv,
        sparse: BlockSparseMatrix,
        grid: BlockGrid,
        bias: Tensor | None,
        dtype: torch.dtype = torch.float32,
        way: str | None = None,
    ) -> BlockSparseConv:
        """In the place of `conv`, with the weight `sparse` (float values, which become ones of `dtype`) instead of its own."""
        return cls(geometry_of(conv), BlockSparseLinear.from_matrix(sparse, grid, bias, dtype), way)

    @property
    def in_channels(self) -> int:
        return self.geometry.channels

    @property
    def out_channels(self) -> int:
        return self.matrix.out_features

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.geometry.kernel

    @property
    def stride(self) -> tuple[int, ...]:
        return self.geometry.stride

    @property
    def padding(self) -> tuple[int, ...] | str:
        """Pixels on both sides of each axis; "same" where they differ."""
        pads = self.geometry.padding
        return "same" if any(before != after for before, after in pads) else tuple(before for before, _ in pads)

    @property
    def padding_mode(self) -> str:
        return self.geometry.padding_mode

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.geometry.dilation

    @property
    def groups(self) -> int:
        return 1

    @property
    def bias(self) -> Tensor | None:
        return self.matrix.bias

    @property
    def keeps_blocks(self) -> bool:
        """True: `state_dict` gives the blocks; False: the dense weight, as the layer has it that this one stands for."""
        return self.matrix.keeps_blocks

    @keeps_blocks.setter
    def keeps_blocks(self, value: bool) -> None:
        self.matrix.keeps_blocks = value

    @property
    def grid(self) -> BlockGrid:
        """Of the weight as a matrix."""
        return self.matrix.grid

    @property
    def weight(self) -> Tensor:
        """The dense weight (C_out, C, kernel…), made when it is asked for."""
        return conv_weight(self.matrix.weight, self.geometry)

    @property
    def choices(self) -> list[ConvChoice]:
        """What was chosen so far, for each kind of input, and the times that say why."""
        return [choice for products in self._prepared for choice in products.choices.values()]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight in memory, with what the chosen ways hold besides."""
        return sum(products.bytes for products in self._prepared) or self.matrix.weight_bytes

    def forward(self, x: Tensor) -> Tensor:
        needs_thought = x.requires_grad or is_compiling() or is_autocast_enabled("cpu") or has_tangents()
        if type(x) is Tensor and x.is_cpu and not needs_thought:
            if is_tracing():
                return self._dense(x)
            if not is_wrapped(x):
                return self.convolve(x)
        return by_context(x, self._dense, self._by_operator, self.convolve, self._by_operator)

    def _by_operator(self, x: Tensor) -> Tensor:
        matrix, geometry = self.matrix, self.geometry
        tensors = matrix.graph_tensors()
        matrix.check_dtype(x.dtype)
        batch = geometry.batch(x)
        y: Tensor = block_sparse_conv(batch, *tensors, matrix.out_features, *arguments_of(geometry), self.way)
        if self.keep_format and batch.is_contiguous():
            y = y.contiguous()
        return y if batch is x else y.squeeze(0)

    def _dense(self, x: Tensor) -> Tensor:
        """The forward pass for TorchScript, and for derivatives forward."""
        return dense_convolution(self.weight, self.bias, self.geometry)(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The forward pass of x (N, C, …) or (C, …) without autocast and gradients."""
        return self.products(x.dtype)(x)

    def products(self, dtype: torch.dtype) -> ConvProducts:
        """The ways to convolve x of this dtype with the weights as they are now."""
        matrix = self._modules["matrix"]  # attributes that are modules take a while to be found
        assert isinstance(matrix, BlockSparseLinear), "it is always there"
        state = matrix.state()
        known = self._products.get(dtype)
        if known is not None and known[0] is state:
            return known[1]
        matrix.check_dtype(dtype)
        self._check_way()
        found = convolution_of(state, self._settings, dtype)
        self._products[dtype] = state, found
        return found

    @property
    def _settings(self) -> ConvSettings:
        return ConvSettings(self.geometry, self.way, self.keep_format)

    @property
    def _prepared(self) -> list[ConvProducts]:
        """By this layer, and by graphs that compute with its weight."""
        state = self.matrix.known_state()
        if state is None:
            return []
        settings = self._settings, ConvSettings(self.geometry, self.way)  # what the operator does
        return [found for (key, _), found in state.convolutions.items() if key in settings]

    def extra_repr(self) -> str:
        geometry = self.geometry
        shown = f"{geometry.channels}, {self.out_channels}, kernel_size={geometry.kernel}, stride={geometry.stride}"
        if geometry.padded:
            shown += f", padding={self.padding}"
            shown += "" if geometry.padding_mode == "zeros" else f", padding_mode={geometry.padding_mode}"
        return shown if set(geometry.dilation) == {1} else f"{shown}, dilation={geometry.dilation}"

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("way", "keep_format"):
            self._products = {}
        if name == "matrix":
            value.stored = ELSEWHERE

    def _begin(self) -> None:
        """What is not saved with the module."""
        self._products = {}
        self.matrix.stored = ELSEWHERE
        self._check_way()

    def _check_way(self) -> None:
        if self.way is not None and self.way not in CONV_WAYS:
            raise ValueError(f"'{self.way}' is not a way to convolve; there are {', '.join(CONV_WAYS)}")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not (self.keeps_blocks or keep_vars):  # else the matrix saves them
            destination.update(dense_conv_state(self, prefix))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        """As in any module, from blocks, of which there may be another number, or from a dense weight."""
        rename_conv_state(self, state_dict, prefix, missing_keys if strict else [], rest[-1])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)

    def __getstate__(self) -> dict[str, Any]:
        """Without what this process has prepared."""
        state = self.__dict__.copy()
        state.pop("_products", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()


def geometry_of(conv: Conv) -> ConvGeometry:
    """Raises ValueError for a convolution of several groups."""
    if conv.groups != 1:
        raise ValueError(f"a convolution of {conv.groups} groups has no one matrix")
    return ConvGeometry.of(conv)
