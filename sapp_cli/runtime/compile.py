"""Generated modules as machine code in this process, compiled once for each shape of kernel."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from sapp_cli.runtime.driver import generate
from sapp_cli.runtime.isa import Isa
from sapp_cli.runtime.kernel_shape import KernelShape

LOCK = Lock()
"""Held while LLVM works, which is not made for two threads at once."""


@dataclass(frozen=True)
class MachineCode:
    """The entries of a compiled module, and what keeps them in memory."""

    run_part: Any
    """ctypes function (address of the job, number of the part); releases the GIL."""
    run_team: int | None
    """Address of the function that each thread of an OpenMP team calls with the job."""
    engine: Any


@cache
def compiled(shape: KernelShape, *, openmp: bool) -> MachineCode:
    """The machine code of this shape; about a quarter of a second where it is new."""
    with LOCK:
        machine, module = optimized(shape, openmp=openmp)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
    part = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.get_function_address("run_part"))
    return MachineCode(part, engine.get_function_address("run_team") if openmp else None, engine)


def optimized(shape: KernelShape, *, openmp: bool) -> tuple[Any, Any]:
    """(target machine, optimized module), verified by LLVM; for any processor LLVM knows, this one or not."""
    return optimize(generate(shape, openmp=openmp), shape.isa)


def optimize(text: Any, isa: Isa) -> tuple[Any, Any]:
    """The same of any module that was generated for this instruction set."""
    triple = isa.triple or llvm.get_process_triple()
    _initialize(isa)
    text.triple = triple
    module = llvm.parse_assembly(str(text))
    module.verify()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=_cpu(isa), features=isa.features, opt=3, jit=isa.triple is None
    )
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.slp_vectorization = False  # the tiles are vectors already,
    options.loop_unrolling = False  # and as long as the registers last
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return machine, module


def _cpu(isa: Isa) -> str:
    """The processor to schedule for: this one, if the instruction set is one of its own."""
    return isa.cpu if isa.triple or not isa.features else str(llvm.get_host_cpu_name())


def _initialize(isa: Isa) -> None:
    if isa.triple is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()  # for the one instruction that is written out
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
