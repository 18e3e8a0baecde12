"""Memory of this process as the kernel counts it, in MiB; Linux only."""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> float:
    """What it holds now."""
    return _mib("VmRSS")


def peak_mib() -> float:
    """The most it ever held; of this process alone, where getrusage would count what the parent held before exec."""
    return _mib("VmHWM")


def _mib(entry: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {entry} in /proc/self/status: memory is measured on Linux only")
