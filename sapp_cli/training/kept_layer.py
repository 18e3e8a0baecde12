"""A pruned Linear while a sparse phase trains its kept blocks by themselves: its forward pass, in the module's place."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sapp_cli.layers import AttachedLayer, is_hf_conv1d
from sapp_cli.runtime.kept_product import KeptProduct


class KeptLayer:
    """Put in place when it is made, until `remove`: the module computes with its kept blocks, whatever calls it.

    Whoever reads the module's weight instead, and every evaluation with rounded weights, gets the whole weight of these blocks.
    """

    def __init__(self, layer: AttachedLayer) -> None:
        self._layer = layer
        layer.part_kept_blocks()
        layer.theta.requires_grad_(False)  # DDP would add up zeros for it in every step
        self._product = KeptProduct(layer.masked.keep, layer.masked.grid)
        layer.owner.forward = self.forward  # a bound method: a copy of the model has a copy of this object

    def remove(self) -> None:
        """Leave module and θ as if the phase had trained θ as a whole."""
        del self._layer.owner.forward
        self._layer.join_kept_blocks()
        self._layer.theta.requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        owner, masked = self._layer.owner, self._layer.masked
        assert masked.kept is not None, "in place as long as the kept blocks are parted"
        values, device = masked.kept.values, x.device.type
        casts = torch.is_autocast_enabled(device)
        if masked.round_to is not None or (not x.is_cpu if casts else x.dtype != values.dtype):
            whole: Tensor = type(owner).forward(owner, x)
            return whole
        bias = owner.bias
        assert bias is None or isinstance(bias, Tensor), "of a Linear"
        # Some blocks in float32 are faster than all of them in bfloat16.
        with torch.autocast(device, enabled=False) if casts else nullcontext():
            scale = masked.method.kept_scale(values, masked.state)
            y = self._product(x.to(values.dtype), values, scale, bias)
        return y.to(torch.get_autocast_dtype(device)) if casts else y


def can_part(layer: AttachedLayer) -> bool:
    """True for a plain Linear or Hugging Face Conv1D with a weight of its own, whole on this device, that is trained."""
    owner, theta = layer.owner, layer.theta
    own = type(owner).__mro__[1]  # the class that parametrizing derived from
    plain = own is nn.Linear or (own.__name__ == "Conv1D" and is_hf_conv1d(owner))
    alone = len(layer.layer.names) == 1 and len(owner.parametrizations[layer.attribute]) == 1  # type: ignore[index]
    return (
        plain
        and alone
        and "forward" not in vars(owner)
        and type(theta) is nn.Parameter
        and theta.requires_grad
        and bool(layer.masked.keep.any())
    )
