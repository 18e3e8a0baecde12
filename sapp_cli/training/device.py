"""Where a run computes and how reproducibly: Accelerate for devices, precision and processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from sapp_cli.errors import SettingError, UsageError
from sapp_cli.recipe.schema import TrainSection
from sapp_cli.training.processes import connect

ACCELERATE_FSDP = "ACCELERATE_USE_FSDP"
"""Set by `accelerate launch` where its configuration, or --use_fsdp, asks for FSDP."""


def on_cpu(settings: TrainSection) -> bool:
    """True for a run on the CPU. Raises SettingError for a device or a precision that this machine does not have."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingError([("train.device", "cuda, but torch sees no CUDA device; take auto or cpu")])
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if settings.precision == "fp16" and cpu:
        raise SettingError([("train.precision", "fp16 needs a GPU; take bf16 or fp32")])
    return cpu


def make_accelerator(settings: TrainSection) -> Accelerator:
    """The accelerator of a run, on one process or as many as torchrun or `accelerate launch` started.

    Raises SettingError for a device or a precision that this machine does not have.
    """
    cpu = on_cpu(settings)
    cards, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if not cpu and local_rank >= cards:
        raise UsageError(
            f"process {local_rank} of this machine has no GPU, torch sees {cards}: start as many as there are"
        )
    # It is one for the whole process and refuses other settings than those of the run before.
    AcceleratorState._reset_state()
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    # A pooler that the loss does not look at gets no gradient; DDP would wait for it.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    with _without_fsdp_of_accelerate():
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[unused])
    connect()
    if settings.precision == "fp16" and shards(settings, accelerator):
        raise SettingError([("train.precision", "fp16 does not go with weights spread by FSDP; take bf16")])
    return accelerator


def shards(settings: TrainSection, accelerator: Accelerator) -> bool:
    """True if the weights are to be spread over the processes: the recipe or `accelerate launch` asks for it."""
    asked = settings.shard or os.environ.get(ACCELERATE_FSDP, "false").lower() in ("1", "true")
    return asked and accelerator.num_processes > 1


def describe_processes(settings: TrainSection, accelerator: Accelerator) -> str:
    """How many, and how they share the work: "1", "2 (DDP)" or "2 (FSDP2)"."""
    count = accelerator.num_processes
    return f"{count} ({'FSDP2' if shards(settings, accelerator) else 'DDP'})" if count > 1 else "1"


@contextmanager
def _without_fsdp_of_accelerate() -> Iterator[None]:
    """Accelerate prepares devices and processes; what is spread, and when, is `sharding.shard`'s business."""
    asked = os.environ.pop(ACCELERATE_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[ACCELERATE_FSDP] = asked


@contextmanager
def reproducible(settings: TrainSection, accelerator: Accelerator) -> Iterator[None]:
    """Everything random seeded, kernels that give the same bits every time: always on a CPU, on CUDA where asked.

    All processes draw the same until `draw_apart`: weights that a checkpoint lacks start equal everywhere.
    """
    flags: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory
    set_seed(settings.seed)
    torch.use_deterministic_algorithms(settings.deterministic or accelerator.device.type == "cpu")
    # It would write every new tensor twice, for those who read what was never written.
    flags.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        flags.fill_uninitialized_memory = before[1]


def draw_apart(settings: TrainSection, accelerator: Accelerator) -> None:
    """From here on every process draws its own random numbers: equal seeds would give all of them one dropout mask."""
    if accelerator.num_processes > 1:
        set_seed(settings.seed, device_specific=True)
