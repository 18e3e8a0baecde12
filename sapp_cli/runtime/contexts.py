"""What may be on around a forward pass, and which form of a layer's computation fits it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling


def is_tracing() -> bool:
    """True while TorchScript records what torch computes: all that it does not see, it takes for a constant."""
    return bool(torch.jit.is_tracing())  # type: ignore[no-untyped-call, attr-defined]


def has_tangents() -> bool:
    """True within forward-mode differentiation, where torch's own kernels drop the tangent of x and ours cannot take x."""
    return forward_ad._current_level >= 0


def is_wrapped(x: Tensor) -> bool:
    """True within `torch.func`, as for an x that `vmap` has taken a dimension from: there is no memory of such a shape."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def by_context(
    x: Tensor,
    dense: Callable[[Tensor], Tensor],
    operator: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    with_gradient: Callable[[Tensor], Tensor],
) -> Tensor:
    """A layer's forward pass where anything may be on: what torch sees through, an operator of torch, or neither.

    `with_gradient` is for an x that wants one, with nothing else on: operators of torch take their time there.
    """
    if has_tangents() or is_tracing():
        return dense(x)
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    if is_compiling():
        return operator(x)
    wrapped = is_wrapped(x)
    if wrapped and x.requires_grad:  # torch.func.grad cannot differentiate operators of other libraries
        return dense(x)
    if wrapped or type(x) is not Tensor:
        return operator(x)
    return with_gradient(x) if x.requires_grad and torch.is_grad_enabled() else plain(x)
