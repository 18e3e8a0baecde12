"""The model's state dict with its masks folded in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from sapp_cli.layers.attached import AttachedLayer
from sapp_cli.layers.rows import whole


def tensor_state(model: nn.Module) -> dict[str, Tensor]:
    """model.state_dict() without what is not a tensor: a module's extra state may be any object, and is not a weight."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class FoldedState(Mapping[str, Tensor]):
    """The model's state dict under the names it had before `attach`, masks folded in; tensors are made when asked for.

    Aliases of a tied weight give equal tensors. Pruned weights come in fp32, all others as they are. Of a model that FSDP
    has spread all processes must ask for the same tensor.
    """

    def __init__(self, model: nn.Module, names: list[str], attached: Mapping[str, AttachedLayer]) -> None:
        self._plain = tensor_state(model)
        self._names = names
        self._masked = {name: layer for layer in attached.values() for name in layer.layer.names}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._masked:
            layer = self._masked[name]
            return layer.masked.fold(whole(layer.theta.detach()))
        plain: Tensor = self._plain[name]
        return whole(plain.detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
