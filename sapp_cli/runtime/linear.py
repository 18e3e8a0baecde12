"""`BlockSparseLinear`: an ordinary module in the place of a `torch.nn.Linear` whose weight is block-sparse.

R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, get_num_threads, is_autocast_enabled, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix, encode, index_problem
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import WAYS, Choice, Way
from sapp_cli.runtime.gpu import is_captured
from sapp_cli.runtime.operators import block_sparse_linear, by_context, has_tangents, is_tracing, registered
from sapp_cli.runtime.packing import input_major
from sapp_cli.runtime.plain import dense_weight
from sapp_cli.runtime.products import MOST_SEEN, Products

BUFFERS = ("values", "crow", "col")


Call: TypeAlias = tuple[torch.Size, torch.dtype, int]
"""Shape and dtype of x, threads."""


@dataclass(frozen=True, eq=False, slots=True)
class WeightState:
    """The tensors of a layer as they were when they were checked, and what was prepared of them since."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None]
    """values, crow, col, bias: held, so that no other tensor can come to lie in their places."""
    places: tuple[int, int]
    """Of values and bias in memory: what is prepared reads them there. Of the indices it has copies."""
    versions: tuple[int, ...] | None
    """How often each was changed in place; None if one was made in inference mode, for which torch does not count it."""
    products: dict[torch.dtype, Products] = field(default_factory=dict)
    ways: dict[Call, Way] = field(default_factory=dict)
    """Taken so far on a CPU."""

    @classmethod
    def of(cls, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None) -> WeightState:
        tensors = values, crow, col, bias
        counted = not any(tensor is not None and tensor.is_inference() for tensor in tensors)
        places = values.data_ptr(), 0 if bias is None else bias.data_ptr()
        versions = tuple(0 if tensor is None else tensor._version for tensor in tensors) if counted else None
        return cls(tensors, places, versions)


class BlockSparseLinear(nn.Module):
    """y = x Wᵀ + bias for any leading dimensions of x, W given by its kept blocks; for inference, the weights are frozen.

    A forward pass takes the fastest of several ways, measured at the first batch of a size (`choices` says which and
    why); set `way` to one of "kernel", "triton", "torch-bsr", "torch", "dense", "onednn" to have always the same: the first
    and the last are for a CPU, the second and third for a GPU. Gradients reach x.
    The indices are checked here and whenever a state is loaded: CheckpointError says what is wrong with them.
    """

    values: Tensor  # (K, br, bc)
    crow: Tensor  # int32 (R + 1,)
    col: Tensor  # int32 (K,)
    bias: Tensor | None  # (out,)
    _known: WeightState | None

    def __init__(
        self,
        matrix: tuple[int, int],
        values: Tensor,
        crow: Tensor,
        col: Tensor,
        bias: Tensor | None = None,
        way: str | None = None,
    ) -> None:
        """`matrix` (out, in); values (K, br, bc), crow (R + 1,), col (K,): as `torch.sparse_bsr_tensor` takes them."""
        super().__init__()
        self.out_features, self.in_features = matrix
        self.block = values.shape[1], values.shape[2]
        self.way = way
        self.register_buffer("values", input_major(values.detach()))
        self.register_buffer("crow", crow.to(torch.int32, copy=True))
        self.register_buffer("col", col.to(torch.int32, copy=True))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._begin()

    @classmethod
    def from_dense(cls, linear: nn.Linear, block: tuple[int, int], way: str | None = None) -> BlockSparseLinear:
        """The blocks of the layer's weight that have something nonzero in them."""
        return cls.from_weight(linear.weight, linear.bias, block, way)

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None, block: tuple[int, int], way: str | None = None
    ) -> BlockSparseLinear:
        """The same of a weight (out, in)."""
        out, columns = weight.shape
        grid = BlockGrid((out, columns), block)
        # As float32, in which every shorter float has its own value.
        exact = weight.detach().cpu() if weight.dtype == torch.float64 else weight.detach().float().cpu()
        sparse = encode(exact.numpy(), grid, DTYPES["F64" if weight.dtype == torch.float64 else "F32"])
        return cls.from_matrix(sparse, grid, bias, weight.dtype, way).to(weight.device)

    @classmethod
    def from_matrix(
        cls,
        sparse: BlockSparseMatrix,
        grid: BlockGrid,
        bias: Tensor | None,
        dtype: torch.dtype = torch.float32,
        way: str | None = None,
    ) -> BlockSparseLinear:
        """Of a block-sparse matrix with float values, which become ones of `dtype`."""
        values, crow, col = (torch.from_numpy(np.array(array)) for array in (sparse.values, sparse.crow, sparse.col))
        return cls(grid.matrix, values.to(dtype), crow, col, bias, way)

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid((self.out_features, self.in_features), self.block)

    @property
    def weight(self) -> Tensor:
        """The dense weight (out, in), made when it is asked for: for code that looks at a Linear's weight."""
        return dense_weight(self.values, self.crow, self.col, self.grid)

    @property
    def choices(self) -> list[Choice]:
        """What was chosen so far, for each kind of batch, and the times that say why."""
        return [choice for products in self._prepared.values() for choice in products.choices.values()]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight in memory, with what the chosen ways hold besides."""
        prepared = self._prepared.values()
        return sum(products.bytes for products in prepared) or self.values.nbytes + self.crow.nbytes + self.col.nbytes

    def forward(self, x: Tensor) -> Tensor:
        # What most calls are comes first, and asks for nothing twice: a small layer takes a few microseconds.
        if (
            type(x) is Tensor
            and x.is_cpu
            and not (x.requires_grad or is_autocast_enabled("cpu") or is_compiling() or has_tangents())
        ):
            known = self.state()
            call = x.shape, x.dtype, get_num_threads()
            way = known.ways.get(call)
            return self._first_call(x, call, known) if way is None else way(x)
        return by_context(x, self._dense, self._by_operator, self.multiply)

    def _first_call(self, x: Tensor, call: Call, known: WeightState) -> Tensor:
        """The forward pass of x on a CPU in a shape that is new.

        Where TorchScript records, every shape is: the numbers in it are none then, and have another hash.
        """
        if is_tracing():
            return self._dense(x)
        if len(known.ways) >= MOST_SEEN:
            known.ways.clear()
        way = known.ways[call] = self.products(x.dtype).way_for(x)
        return way(x)

    def _by_operator(self, x: Tensor) -> Tensor:
        y: Tensor = block_sparse_linear(x, self._number, self.out_features)
        return y

    def _dense(self, x: Tensor) -> Tensor:
        """The forward pass for TorchScript, and for derivatives forward."""
        return F.linear(x, self.weight, self.bias)

    def multiply(self, x: Tensor) -> Tensor:
        """The forward pass without autocast and gradients."""
        return self.products(x.dtype)(x)

    def products(self, dtype: torch.dtype) -> Products:
        """The ways to multiply x of this dtype by the weights as they are now."""
        prepared = self.state().products
        found = prepared.get(dtype)
        if found is None:
            own = self.values.dtype
            if dtype != own and not (is_autocast_enabled(self.values.device.type) and dtype.is_floating_point):
                raise ValueError(f"x is {dtype}, the weight of this BlockSparseLinear is {own}; convert one of them")
            found = Products(self.values, self.crow, self.col, self.bias, self.grid, dtype, self.way)
            prepared[dtype] = found
        return found

    def state(self) -> WeightState:
        """The weights as they are now, checked: the same object as long as nothing changes them.

        Asked for at every call, so it has to be quick: of the indices it does not see that `.data` was replaced.
        """
        known = self._known
        buffers: dict[str, Any] = self._buffers  # the first three are always there
        values, crow, col, bias = buffers["values"], buffers["crow"], buffers["col"], buffers["bias"]
        if known is not None:
            tensors, places, versions = known.tensors, known.places, known.versions
            if (
                values.data_ptr() == places[0]
                and (0 if bias is None else bias.data_ptr()) == places[1]
                and crow is tensors[1]
                and col is tensors[2]
                and (
                    versions is None
                    or versions == (values._version, crow._version, col._version, 0 if bias is None else bias._version)
                )
            ):
                return known
        if is_captured(values):
            raise RuntimeError(
                "a BlockSparseLinear checks its indices before it computes for the first time, which cannot be done while "
                "a CUDA graph is captured; run the model once before, as torch.cuda.graph asks for anyway"
            )
        found = WeightState.of(values, crow, col, bias)
        self.check()
        self._known = found
        return found

    def check(self) -> None:
        """Raise CheckpointError unless indices and shapes are those of a block-sparse matrix."""
        grid, kept = self.grid, len(self.col)
        if self.way is not None and self.way not in WAYS:
            raise ValueError(f"'{self.way}' is not a way to multiply; there are {', '.join(WAYS)}")
        if tuple(self.values.shape) != (kept, *self.block):
            problem: str | None = f"values are {tuple(self.values.shape)}, not {(kept, *self.block)}"
        elif self.crow.dtype != torch.int32 or self.col.dtype != torch.int32 or self.col.dim() != 1:
            problem = f"indices are {self.crow.dtype} and {self.col.dtype}, not two vectors of torch.int32"
        elif self.bias is not None and tuple(self.bias.shape) != (self.out_features,):
            problem = f"the bias is {tuple(self.bias.shape)}, not {(self.out_features,)}"
        elif self.values.is_meta:
            problem = None  # nothing to read yet
        else:
            problem = index_problem(self.crow.cpu().numpy(), self.col.cpu().numpy(), grid)
        if problem is not None:
            raise CheckpointError(
                f"a {self.out_features}×{self.in_features} weight in blocks of {self.block[0]}×{self.block[1]}: {problem}"
            )

    def extra_repr(self) -> str:
        kept = f"{len(self.col)} of {self.grid.count} blocks of {self.block[0]}×{self.block[1]}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {kept}, bias={self.bias is not None}"

    def _begin(self) -> None:
        """What is not saved with the module."""
        self._known = None
        self._number = registered(self)
        self.check()

    @property
    def _prepared(self) -> dict[torch.dtype, Products]:
        return {} if self._known is None else self._known.products

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "way":
            self._known = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As in any module, but the state may have another number of kept blocks."""
        for name in BUFFERS:
            loaded, own = state_dict.get(prefix + name), self._buffers[name]
            if isinstance(loaded, Tensor) and own is not None and loaded.shape[1:] == own.shape[1:]:
                if name == "values":
                    self._buffers[name] = input_major(own.new_empty(loaded.shape))
                elif loaded.shape != own.shape and name == "col":
                    self._buffers[name] = own.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._known = None
        self.check()

    def __getstate__(self) -> dict[str, Any]:
        """Without what this process has prepared."""
        state = self.__dict__.copy()
        for name in ("_known", "_number"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()
