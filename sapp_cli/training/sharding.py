"""FSDP2: weights, logits, gradients and optimizer state in pieces, each process holding some rows of every tensor.

The masks are attached before; `keep` stays whole everywhere, θ and the logits are spread like everything else, in fp32. What
looks at a weight outside of a forward (norms, selection, folding, the saved state) puts that one tensor together and lets
it go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils.parametrize import ParametrizationList

from sapp_cli.layers import whole
from sapp_cli.training.processes import from_main


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread the model's parameters over all processes, in place, and move them to this process's device.

    Before the optimizer is made: the parameters are new objects after it.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.set_(parameter.contiguous())  # type: ignore[call-overload]
    # Resharded after every forward, the root too: otherwise an evaluation would leave old weights gathered.
    for unit in [*_units(model), model]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """True for a model that `shard` has spread."""
    return isinstance(model, FSDPModule)


def _units(model: nn.Module) -> list[nn.Module]:
    """The modules that are put together one at a time: the outermost repeated layers that share no weight with others.

    A layer is taken whole: inside it modules look at each other's weights (MultiheadAttention).
    """
    found: list[nn.Module] = []
    pending = [model]
    while pending:
        for child in pending.pop().children():
            if isinstance(child, nn.ModuleList) and not isinstance(child, ParametrizationList):
                found.extend(child)
            else:
                pending.append(child)
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))

    def stands_alone(unit: nn.Module) -> bool:
        inside = {id(module) for module in unit.modules()}
        return all(owners[id(parameter)] <= inside for parameter in unit.parameters())

    return [unit for unit in found if stands_alone(unit)]


@contextmanager
def put_together(tensors: Mapping[str, Tensor], in_pieces: bool) -> Iterator[Mapping[str, Tensor]]:
    """The tensors for the main process, whole, in any order and each made when it is asked for.

    The others have to be in `hand_over` with theirs, and stay there until this ends.
    """
    yield _Asked(tensors) if in_pieces else tensors
    from_main("")


def hand_over(tensors: Mapping[str, Tensor]) -> None:
    """Give the main process the pieces of whatever it asks for, until it needs no more."""
    while name := from_main(""):
        whole(tensors[name])


class _Asked(Mapping[str, Tensor]):
    """Tells the others which tensor is wanted before it puts it together with them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return whole(self._tensors[from_main(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
