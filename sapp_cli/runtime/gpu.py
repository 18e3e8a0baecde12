"""What a GPU and torch's settings for it allow, and waiting for it. Everything here is quick, and harmless on a CPU."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

LEAST_BF16_CAPABILITY = (8, 0)
"""Ampere; cards before it have no arithmetic for bfloat16."""


def is_on_gpu(x: Tensor) -> bool:
    """True where CUDA kernels can read x: on cards of NVIDIA, and of AMD with torch's ROCm build."""
    return x.is_cuda


def wait_for(x: Tensor) -> None:
    """Returns when nothing is under way on the device of x: a GPU has only been told what to do when a call returns."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def is_captured(x: Tensor) -> bool:
    """True while a CUDA graph is recorded from what is done to x: nothing can be waited for or measured then."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def tf32_allowed() -> bool:
    """True if torch may multiply float32 as TF32, as users allow it for torch's own products."""
    settings = torch.backends.cuda.matmul
    precision = getattr(settings, "fp32_precision", None)  # since torch 2.9; the older flag sets it as well
    return bool(settings.allow_tf32) if precision is None else precision == "tf32"


def multiplies_bf16(device: torch.device) -> bool:
    """True for a GPU that does; Triton's interpreter, which runs on the CPU, does not."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_BF16_CAPABILITY


def on_device(x: Tensor) -> torch.cuda.device | nullcontext[None]:
    """Triton starts kernels on the current device, which need not be the one that x is on."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
