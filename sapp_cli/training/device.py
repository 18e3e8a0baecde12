"""Where a run computes and how reproducibly: Accelerate for devices, precision and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from sapp_cli.errors import UsageError
from sapp_cli.recipe.schema import TrainSection


def make_accelerator(settings: TrainSection) -> Accelerator:
    """The accelerator of a run. Raises UsageError for a device or a precision that this machine does not have."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("train.device: cuda, but torch sees no CUDA device; take auto or cpu")
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if settings.precision == "fp16" and cpu:
        raise UsageError("train.precision: fp16 needs a GPU; take bf16 or fp32")
    # It is one for the whole process and refuses other settings than those of the run before.
    AcceleratorState._reset_state()
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    return Accelerator(cpu=cpu, mixed_precision=precision)


@contextmanager
def reproducible(settings: TrainSection, accelerator: Accelerator) -> Iterator[None]:
    """Everything random seeded, kernels that give the same bits every time: always on a CPU, on CUDA where asked."""
    before = torch.are_deterministic_algorithms_enabled()
    set_seed(settings.seed, device_specific=accelerator.num_processes > 1)
    torch.use_deterministic_algorithms(settings.deterministic or accelerator.device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
