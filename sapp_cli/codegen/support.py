"""Whether code can be generated here at all."""

from __future__ import annotations

from functools import lru_cache


@lru_cache
def kernels_work() -> bool:
    """True if llvmlite is there and knows this processor."""
    try:
        from sapp_cli.codegen.isa import host_isas

        return bool(host_isas())
    except (ImportError, OSError, RuntimeError):
        return False
