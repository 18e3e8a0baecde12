"""Whether code can be generated here at all, and for which instruction set the user wants it."""

from __future__ import annotations

import os
from functools import lru_cache

from sapp_cli.errors import UsageError


@lru_cache
def kernels_work() -> bool:
    """True if llvmlite is there and knows this processor."""
    try:
        from sapp_cli.codegen.isa import host_isas

        return bool(host_isas())
    except (ImportError, OSError, RuntimeError):
        return False


def require_instruction_set() -> None:
    """Raise UsageError if SAPP_ISA asks for kernels that cannot be generated here; without it nothing is imported."""
    name = os.environ.get("SAPP_ISA")
    if not name:
        return
    if not kernels_work():
        raise UsageError(f"SAPP_ISA: {name}, but no kernels can be generated on this machine; unset it")
    from sapp_cli.codegen.isa import chosen_isa

    chosen_isa()
