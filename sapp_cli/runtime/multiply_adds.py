"""The multiply-adds of each weight, seen by the operators that a model calls.

An operator mode sees every matrix product and convolution, whatever called it: a module, a function, a recurrent cell, an
expert. A product is known by the storage of its operands, so views of a weight count for the weight. A tensor that is made
from weights alone (a cast, a transposed copy, a normalized weight) counts for the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten

FIRST_FACTOR: dict[Any, int] = {
    aten.mm: 0,
    aten.bmm: 0,
    aten.mv: 0,
    aten.dot: 0,
    aten.linear: 0,
    aten.addmm: 1,
    aten.addmv: 1,
    aten.baddbmm: 1,
    aten.addbmm: 1,
    aten._addmm_activation: 1,
}
"""{matrix product: position of its first factor}; the second comes right after it."""

CONVOLUTIONS = (aten.convolution, aten._convolution)
TRANSPOSED = 6
"""Position of `transposed` among the arguments of both."""

READS = frozenset(
    {
        aten.embedding,
        aten._embedding_bag,
        aten._embedding_bag_forward_only,
        aten.index,
        aten.index_select,
        aten.gather,
        aten.take,
        aten.cat,
        aten.stack,
        aten.copy_,
        aten.index_put,
        aten.index_put_,
        aten.masked_fill,
        aten.masked_fill_,
        aten.index_add,
        aten.scatter,
        aten.scatter_add,
        aten.native_layer_norm,
        aten.native_batch_norm,
        aten.native_group_norm,
        aten._scaled_dot_product_flash_attention_for_cpu,
    }
)
"""Operators that may be given a weight of two or more dimensions and multiply no matrix by it."""


class MultiplyAdds(TorchDispatchMode):
    """Within it, `counts` {name: multiply-adds} grows with every product that one of `weights` {name: weight} takes part in.

    `unknown` names the weights that went into an operator which is none of those above: what it multiplies is not known.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = dict.fromkeys(weights, 0)
        self.unknown: set[str] = set()
        self._weights = dict(weights)
        self._sources: dict[int, list[tuple[int, int, str]]] = {}  # address of a storage → the entries of each weight
        for name, weight in weights.items():
            start = int(weight.storage_offset())
            self._add(weight, name, start, start + weight.numel())
        self._made: list[Tensor] = []  # from weights; held so that nothing else gets their addresses

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in FIRST_FACTOR and packet not in CONVOLUTIONS:
            with self:  # in inference mode whole functions arrive here, which are made of smaller operators
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        output = func(*args, **kwargs)
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        sources = [self._source(tensor) for tensor in given]
        names = {source for source in sources if source is not None}
        if not names:
            return output
        name = max(names, key=lambda known: self._weights[known].numel())
        made_of_weights = all(
            source is not None or tensor.dim() == 0 for source, tensor in zip(sources, given, strict=True)
        )
        if made_of_weights:
            self._note(name, output)
        if packet in FIRST_FACTOR:
            self.counts[name] += _product(args, FIRST_FACTOR[packet], output)
        elif packet in CONVOLUTIONS:
            self.counts[name] += _convolution(args, output)
        elif not made_of_weights and packet not in READS and torch.Tag.pointwise not in func.tags:
            matrices = [tensor for tensor, source in zip(given, sources, strict=True) if source and tensor.dim() >= 2]
            self.unknown |= {source for source in map(self._source, matrices) if source is not None}
        return output

    def _source(self, tensor: Tensor) -> str | None:
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return None
        entries = self._sources.get(tensor.untyped_storage().data_ptr(), ())
        return next((name for start, stop, name in entries if start <= tensor.storage_offset() < stop), None)

    def _add(self, tensor: Tensor, name: str, start: int, stop: int) -> None:
        self._sources.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, stop, name))

    def _note(self, name: str, output: Any) -> None:
        for tensor in tree_iter(output):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or not tensor.numel():
                continue
            if tensor.dim() and self._source(tensor) is None:  # a view of a weight is known already
                self._add(tensor, name, 0, tensor.untyped_storage().nbytes())
                self._made.append(tensor)


def _product(args: tuple[Any, ...], first: int, output: Tensor) -> int:
    """Every entry of the output is a sum over the axis that the factors share."""
    shared = int(args[first].shape[-1])
    batches = int(args[first].shape[0]) if args[first].dim() == 3 and output.dim() == 2 else 1  # addbmm adds them up
    return output.numel() * shared * batches


def _convolution(args: tuple[Any, ...], output: Tensor) -> int:
    """The kernel is applied at every output position, a transposed one at every input position."""
    images, weight = args[0], args[1]
    channels = images.shape[-weight.dim() + 1] if args[TRANSPOSED] else output.shape[-weight.dim() + 1]
    positions = int((images if args[TRANSPOSED] else output).numel()) // int(channels)
    return positions * int(weight.numel())


@contextmanager
def small_operators() -> Iterator[None]:
    """Recurrent layers as their matrix products, rather than as one operator of a library."""
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False  # their `flags` set more than this, and warn about it
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


def count_multiply_adds(
    weights: Mapping[str, Tensor], run: Callable[[], object], examples: int = 1
) -> dict[str, int | None]:
    """{name: multiply-adds of the weight for one example}, while `run` takes a model through `examples` of them.

    0 for a weight that multiplies nothing, such as an embedding that is looked up. None if it went into an operator of
    which nothing is known. The caller puts the model into eval mode.
    """
    with small_operators(), MultiplyAdds(weights) as seen:
        run()
    return {name: None if name in seen.unknown else -(-count // examples) for name, count in seen.counts.items()}
