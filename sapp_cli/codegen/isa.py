"""Instruction sets that kernels are generated for: how wide a vector is, how many registers hold vectors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from sapp_cli.errors import UsageError

VARIABLE = "SAPP_ISA"
"""Of the environment: the name of the instruction set to generate kernels for."""


@dataclass(frozen=True)
class Isa:
    """What the generator and LLVM have to know about an instruction set."""

    name: str
    lanes: int
    """float32 values in the widest vector register."""
    registers: int
    """Vector registers."""
    triple: str | None = None
    """LLVM's name of the machine; None: the one this process runs on."""
    cpu: str = ""
    """LLVM's name of the processor whose timings instructions are scheduled for."""
    features: str = ""
    """LLVM's switches, such as "+avx2,+fma"."""
    bf16_dot: bool = False
    """True if there is an instruction that multiplies pairs of bfloat16 and adds them up in float32."""


AVX2_FEATURES = "+avx,+avx2,+fma,+bmi,+bmi2,+f16c"
AVX512_FEATURES = f"{AVX2_FEATURES},+avx512f,+avx512bw,+avx512dq,+avx512vl,-prefer-256-bit"

AVX512 = Isa("avx512", lanes=16, registers=32, features=AVX512_FEATURES)
AVX512_BF16 = Isa("avx512-bf16", lanes=16, registers=32, features=f"{AVX512_FEATURES},+avx512bf16", bf16_dot=True)
AVX2 = Isa("avx2", lanes=8, registers=16, features=AVX2_FEATURES)
GENERIC = Isa("generic", lanes=4, registers=14)
"""What every processor of this architecture has. Of 16 registers, two hold products on their way to the sums."""
NEON = Isa("neon", lanes=4, registers=32, triple="aarch64-unknown-linux-gnu", features="+neon")
"""64-bit ARM, for cross-generation."""


def has_tiles() -> bool:
    """True for a CPU with instructions that multiply tiles of bfloat16 (AMX), many times faster than by vectors."""
    return bool(llvm.get_host_cpu_features().get("amx-bf16"))


@lru_cache
def host_isas() -> tuple[Isa, ...]:
    """The instruction sets this process can run, the best first."""
    found = llvm.get_host_cpu_features()
    has = {name for name in found if found[name]}
    isas: list[Isa] = []
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"} <= has:
        isas += [AVX512_BF16] if "avx512bf16" in has else []
        isas.append(AVX512)
    if {"avx2", "fma"} <= has:
        isas.append(AVX2)
    if llvm.get_process_triple().startswith(("aarch64", "arm64")):
        isas.append(Isa("neon", lanes=4, registers=32))
    return (*isas, GENERIC)


def chosen_isa() -> Isa:
    """The instruction set that kernels are generated for: the one that SAPP_ISA names, else the best of this CPU.

    Raises UsageError if SAPP_ISA names none of `host_isas`.
    """
    return _named(os.environ.get(VARIABLE, ""))


@lru_cache
def _named(name: str) -> Isa:
    isas = host_isas()
    found = next((isa for isa in isas if name in ("", isa.name)), None)
    if found is None:
        here = ", ".join(isa.name for isa in isas)
        raise UsageError(
            f"SAPP_ISA: {name}, expected an instruction set of this CPU ({here}); set one of these, or none"
        )
    return found
