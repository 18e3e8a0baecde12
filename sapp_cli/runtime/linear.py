"""`BlockSparseLinear`: an ordinary module in the place of a `torch.nn.Linear` whose weight is block-sparse.

R, C: block rows and columns.  br, bc: rows and columns of a block.  K: kept blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, get_num_threads, is_autocast_enabled, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn import functional as F

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix, encode
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import Choice
from sapp_cli.runtime.contexts import by_context, is_tracing, is_wrapped
from sapp_cli.runtime.operators import block_sparse_linear, with_input_gradient
from sapp_cli.runtime.packing import input_major
from sapp_cli.runtime.plain import dense_weight
from sapp_cli.runtime.products import MOST_SEEN, Products
from sapp_cli.runtime.saved_state import BLOCKS, LINEAR, blocks_of_state, dense_state
from sapp_cli.runtime.weight_state import Call, WeightState, check, known_state, refuse_unfrozen, state_of

IS_EXPORTING: Callable[[], bool] | None = getattr(torch.compiler, "is_exporting", None)
"""Since torch 2.7."""


class BlockSparseLinear(nn.Module):
    """y = x Wᵀ + bias for any leading dimensions of x, W given by its kept blocks; for inference, the weights are frozen.

    A forward pass takes the fastest of several ways, measured at the first batch of a size (`choices` says which and
    why); set `way` to one of "kernel", "triton", "torch-bsr", "torch", "dense", "onednn" to have always the same: the first
    and the last are for a CPU, the second and third for a GPU. Gradients reach x.
    The indices are checked here and whenever a state is loaded: CheckpointError says what is wrong with them.
    """

    keeps_blocks = False
    """True: `state_dict` gives the blocks; False: the dense weight, as the layer has it that this one stands for."""
    stored = LINEAR
    """How `state_dict` gives the dense weight: see `saved_state`."""
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
        with torch.inference_mode(False):  # of tensors made in it, torch does not count changes
            self.register_buffer("values", input_major(torch.empty_like(values).copy_(values.detach())))
            self.register_buffer("crow", torch.empty_like(crow, dtype=torch.int32).copy_(crow))
            self.register_buffer("col", torch.empty_like(col, dtype=torch.int32).copy_(col))
            self.register_buffer("bias", None if bias is None else torch.empty_like(bias).copy_(bias.detach()))
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
            and not (x.requires_grad or is_autocast_enabled("cpu") or is_compiling() or forward_ad._current_level >= 0)
        ):
            try:
                known = self.state()
                call = x.shape, x.dtype, get_num_threads()
                way = known.ways.get(call)
                return self._first_call(x, call, known) if way is None else way(x)
            except RuntimeError:
                # What torch.func wraps has no memory. That is asked for here alone: it is rare, and small layers are quick.
                refuse_unfrozen(self.values, self.bias)
                if not is_wrapped(x):
                    raise
        return self._thoughtful(x)

    def _thoughtful(self, x: Tensor) -> Tensor:
        """The forward pass where anything may be on."""
        return by_context(x, self._dense, self._by_operator, self.multiply, self._with_gradient)

    def _with_gradient(self, x: Tensor) -> Tensor:
        """The forward pass of an x that gets a gradient."""
        return with_input_gradient(x, self.products(x.dtype), (self.values, self.crow, self.col))

    def _first_call(self, x: Tensor, call: Call, known: WeightState) -> Tensor:
        """The forward pass of x on a CPU in a shape that is new.

        Where TorchScript records, every shape is: the numbers in it are none then, and have another hash.
        """
        if is_tracing() or is_wrapped(x):
            return self._thoughtful(x)
        if len(known.ways) >= MOST_SEEN:
            known.ways.clear()
        way = known.ways[call] = self.products(x.dtype).way_for(x)
        return way(x)

    def _by_operator(self, x: Tensor) -> Tensor:
        tensors = self.graph_tensors()
        self.check_dtype(x.dtype)
        y: Tensor = block_sparse_linear(x, *tensors, self.out_features, self.way)
        return y

    def graph_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Values, crow, col, bias for an operator, also in a graph.

        `torch.compile` takes the shapes of buffers for constants, and would compile a block of a model anew for each number of
        kept blocks. Shapes of tensors that it finds elsewhere become variables. It looks at each call that they are the same.
        """
        if is_dynamo_compiling() and IS_EXPORTING is not None and not IS_EXPORTING():
            values, col = self._elsewhere
            # Their dtypes are looked at first, so that they count as found there; nobody may look at the buffers before.
            if values.dtype and col.dtype and values is self.values and col is self.col:
                return values, self.crow, col, self.bias
        return self.values, self.crow, self.col, self.bias

    def _dense(self, x: Tensor) -> Tensor:
        """The forward pass for TorchScript, and for derivatives forward."""
        return F.linear(x, self.weight, self.bias)

    def multiply(self, x: Tensor) -> Tensor:
        """The forward pass without autocast and gradients."""
        return self.products(x.dtype)(x)

    def products(self, dtype: torch.dtype) -> Products:
        """The ways to multiply x of this dtype by the weights as they are now."""
        self.check_dtype(dtype)
        return self.state().products_for(dtype)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise ValueError for an x of another dtype than the weight's, unless autocast has made it."""
        own = self.values.dtype
        if dtype != own and not (is_autocast_enabled(self.values.device.type) and dtype.is_floating_point):
            raise ValueError(f"x is {dtype}, the weight of this BlockSparseLinear is {own}; convert one of them")

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
                and not (values.requires_grad or (bias is not None and bias.requires_grad))
                and (
                    versions is None
                    or versions == (values._version, crow._version, col._version, 0 if bias is None else bias._version)
                )
            ):
                return known
        found = self._known = state_of(values, crow, col, bias, self.grid, self.way)
        return found

    def known_state(self) -> WeightState | None:
        """The same if there is one already, made by this layer or by a graph that computes with its weights."""
        return known_state(self.values, self.crow, self.col, self.bias, self.grid, self.way)

    def check(self) -> None:
        """Raise CheckpointError unless indices and shapes are those of a block-sparse matrix."""
        check(self.values, self.crow, self.col, self.bias, self.grid, self.way)

    def extra_repr(self) -> str:
        kept = f"{len(self.col)} of {self.grid.count} blocks of {self.block[0]}×{self.block[1]}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {kept}, bias={self.bias is not None}"

    def _begin(self) -> None:
        """What is not saved with the module."""
        self._known = None
        self._find_elsewhere()
        self.check()

    def _find_elsewhere(self) -> None:
        """Keep `graph_tensors` up to date."""
        self._elsewhere = [self.values, self.col]

    @property
    def _prepared(self) -> dict[torch.dtype, Products]:
        state = self.known_state()
        return {} if state is None else state.products

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "way":
            self._known = None
        if name in BLOCKS and "_elsewhere" in self.__dict__:
            self._find_elsewhere()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BlockSparseLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._find_elsewhere()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Who wants the variables themselves gets the blocks: they are what the layer computes with.
        if self.keeps_blocks or keep_vars:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        else:
            destination.update(dense_state(self, prefix))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As in any module, from blocks, of which there may be another number, or from a dense weight."""
        state = blocks_of_state(self, state_dict, prefix, missing_keys if strict else [], error_msgs)
        for name in BLOCKS:
            loaded, own = state.get(prefix + name), self._buffers[name]
            if isinstance(loaded, Tensor) and own is not None and loaded.shape[1:] == own.shape[1:]:
                if name == "values":
                    self._buffers[name] = input_major(own.new_empty(loaded.shape))
                elif loaded.shape != own.shape and name == "col":
                    self._buffers[name] = own.new_empty(loaded.shape)
        super()._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self._known = None
        self._find_elsewhere()
        self.check()

    def __getstate__(self) -> dict[str, Any]:
        """Without what this process has prepared."""
        state = self.__dict__.copy()
        for name in ("_known", "_elsewhere"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()
