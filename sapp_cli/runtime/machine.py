"""The machine that something was measured on, in the words a reader of the figures needs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from sapp_cli.codegen.support import kernels_work


@dataclass(frozen=True)
class Machine:
    """Figures without this mean nothing."""

    cpu: str
    cores: int
    """That this process may use."""
    threads: int
    """That torch computes with."""
    instructions: str
    """Instruction set of the generated kernels; "none" where they do not work."""
    torch: str
    system: str
    date: str
    gpu: str | None = None
    """That the model ran on; None where that was the CPU."""
    keeps_freed_memory: bool = False
    """As `keep_freed_memory` asks for."""

    @property
    def text(self) -> str:
        """One line."""
        on = f"{self.gpu}; " if self.gpu else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        memory = ", freed memory kept" if self.keeps_freed_memory else ""
        return (
            f"{on}{self.cpu}, {self.cores} cores, {threads}, kernels for {self.instructions}, torch {self.torch}, "
            f"{self.system}{memory}, {self.date}"
        )


def this_machine(device: torch.device | None = None, *, keeps_freed_memory: bool = False) -> Machine:
    """The one this runs on; with the GPU where `device` is one. `keeps_freed_memory`: what that function said."""
    instructions = "none"
    if kernels_work():
        from sapp_cli.codegen.isa import chosen_isa

        instructions = chosen_isa().name
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        cpu=_cpu_name(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=instructions,
        torch=torch.__version__,
        system=f"{platform.system()} {platform.machine()}",
        date=datetime.now(timezone.utc).date().isoformat(),
        gpu=torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
        keeps_freed_memory=keeps_freed_memory,
    )


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or "unknown CPU"
