"""The tensors of a block-sparse weight, checked, with what was prepared of them: found again by the tensors themselves.

A layer holds its state. An operator in a graph, which knows no layers, finds the same one by the tensors that it is given.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sapp_cli.checkpoint.block_sparse import index_problem
from sapp_cli.errors import CheckpointError
from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.choice import WAYS, Way
from sapp_cli.runtime.contexts import is_wrapped
from sapp_cli.runtime.gpu import is_captured
from sapp_cli.runtime.products import Products

if TYPE_CHECKING:
    from sapp_cli.runtime.conv_products import ConvProducts, ConvSettings

Call: TypeAlias = tuple[torch.Size, torch.dtype, int]
"""Shape and dtype of x, threads."""


@dataclass(frozen=True, eq=False, slots=True)
class WeightState:
    """The tensors as they were when they were checked, and what was prepared of them since."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None]
    """Values, crow, col, bias: held, so that no other tensor can come to lie in their places. Of the values it is another
    tensor in the same memory: a state is found by the values as long as they live, and must not be what keeps them alive.
    """
    places: tuple[int, int]
    """Of values and bias in memory: what is prepared reads them there. Of the indices it has copies."""
    versions: tuple[int, ...] | None
    """How often each was changed in place; None if one was made in inference mode, for which torch does not count it."""
    grid: BlockGrid
    way: str | None
    products: dict[torch.dtype, Products] = field(default_factory=dict)
    convolutions: dict[tuple[ConvSettings, torch.dtype], ConvProducts] = field(default_factory=dict)
    ways: dict[Call, Way] = field(default_factory=dict)
    """Taken so far on a CPU."""

    @classmethod
    def of(
        cls, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid, way: str | None
    ) -> WeightState:
        """Raises CheckpointError for tensors that are not a block-sparse matrix."""
        # Before the check: what changes meanwhile is seen at the next call.
        places, versions = _places(values, bias), _versions(values, crow, col, bias)
        check(values, crow, col, bias, grid, way)
        return cls((values.detach(), crow, col, bias), places, versions, grid, way)

    def is_of(self, values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None) -> bool:
        """True if these are the tensors, unchanged; other tensors in the same memory count as the same."""
        return (
            self.places == _places(values, bias)
            and self.versions == _versions(values, crow, col, bias)
            and all(_lie_together(*pair) for pair in zip(self.tensors, (values, crow, col, bias), strict=True))
        )

    def products_for(self, dtype: torch.dtype) -> Products:
        """The ways to multiply x of this dtype by the weight."""
        found = self.products.get(dtype)
        if found is None:
            found = self.products[dtype] = Products(*self.tensors, self.grid, dtype, self.way)
        return found


MAPPED = (
    "torch.func.vmap over the weights of a block-sparse layer: expected x to be mapped, and nothing else; "
    "call the models one after the other"
)

_LOCK = RLock()
_STATES: MutableMapping[Tensor, dict[tuple[BlockGrid, str | None], WeightState]] = WeakIdKeyDictionary()
"""Values -> {(grid, way): WeightState}, as long as the values live."""


def state_of(
    values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid, way: str | None
) -> WeightState:
    """The state of these tensors: the same object as long as nothing changes them, whoever asks.

    Raises CheckpointError for tensors that are not a block-sparse matrix; RuntimeError for weights that want a gradient, and
    while a CUDA graph is captured if they were never used before; NotImplementedError for weights that `vmap` maps over.
    """
    refuse_unfrozen(values, bias)
    with _LOCK:
        found = known_state(values, crow, col, bias, grid, way)
        if found is None:
            if is_captured(values):
                raise RuntimeError(
                    "a block-sparse layer checks its indices before it computes for the first time, which cannot be done "
                    "while a CUDA graph is captured; run the model once before, as torch.cuda.graph asks for anyway"
                )
            found = WeightState.of(values, crow, col, bias, grid, way)
            _STATES.setdefault(values, {})[grid, way] = found
        return found


def known_state(
    values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid, way: str | None
) -> WeightState | None:
    """The state of these tensors, if there is one already."""
    with _LOCK:
        states = _STATES.get(values, {})
    found = states.get((grid, way))
    return found if found is not None and found.is_of(values, crow, col, bias) else None


def refuse_unfrozen(values: Tensor, bias: Tensor | None) -> None:
    """Raise NotImplementedError for weights that `torch.func.vmap` maps over, and RuntimeError for those that want a gradient:
    there is none, and training would go on without them.
    """
    if any(tensor is not None and is_wrapped(tensor) and not tensor.requires_grad for tensor in (values, bias)):
        raise NotImplementedError(MAPPED)
    wants = "values" if values.requires_grad else "bias" if bias is not None and bias.requires_grad else None
    if wants is not None:
        raise RuntimeError(
            f"the {wants} of a block-sparse layer: requires_grad is True, expected False, for its weights are frozen; "
            f"call {wants}.requires_grad_(False), and train the dense model with sapp prune or sapp.Pruner"
        )


def check(values: Tensor, crow: Tensor, col: Tensor, bias: Tensor | None, grid: BlockGrid, way: str | None) -> None:
    """Raise CheckpointError unless indices and shapes are those of a block-sparse matrix."""
    kept = len(col)
    if way is not None and way not in WAYS:
        raise ValueError(f"'{way}' is not a way to multiply; there are {', '.join(WAYS)}")
    if tuple(values.shape) != (kept, *grid.block):
        problem: str | None = f"values are {tuple(values.shape)}, not {(kept, *grid.block)}"
    elif crow.dtype != torch.int32 or col.dtype != torch.int32 or col.dim() != 1:
        problem = f"indices are {crow.dtype} and {col.dtype}, not two vectors of torch.int32"
    elif bias is not None and tuple(bias.shape) != (grid.matrix[0],):
        problem = f"the bias is {tuple(bias.shape)}, not {(grid.matrix[0],)}"
    elif values.is_meta:
        problem = None  # nothing to read yet
    else:
        problem = index_problem(crow.cpu().numpy(), col.cpu().numpy(), grid)
    if problem is not None:
        (out, columns), (br, bc) = grid.matrix, grid.block
        raise CheckpointError(f"a {out}×{columns} weight in blocks of {br}×{bc}: {problem}")


def _places(values: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return values.data_ptr(), 0 if bias is None else bias.data_ptr()


def _versions(*tensors: Tensor | None) -> tuple[int, ...] | None:
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        return None
    return tuple(0 if tensor is None else tensor._version for tensor in tensors)


def _lie_together(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype is other.dtype
        and one.device == other.device
    )
