"""Generated modules as machine code in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]

from sapp_cli.codegen.isa import Isa
from sapp_cli.codegen.threads import openmp, run_in_pool

_LOCK = Lock()
"""Held while LLVM works, which is not made for two threads at once."""


@dataclass(frozen=True)
class MachineCode:
    """The entries of a compiled module, and what keeps them in memory."""

    parts: dict[str, Any]
    """ctypes functions (address of the job, number of the part), which release the GIL."""
    teams: dict[str, int]
    """Addresses of the functions that each thread of an OpenMP team calls with the job; none where there is no OpenMP."""
    engine: Any

    def run(self, entry: str, job: bytes, parts: int) -> None:
        """All parts of a job, on as many threads."""
        self.runner(entry, parts)(job)

    def runner(self, entry: str, parts: int) -> Callable[[bytes], object]:
        """What `run` does with jobs of so many parts; quicker where it is asked for once and called often."""
        part = self.parts[entry]
        if parts == 1:
            return lambda job: part(job, 0)
        parallel, team = openmp(), self.teams.get(entry)
        if parallel is None or team is None:
            return lambda job: run_in_pool(part, job, parts)
        return lambda job: parallel(team, job, parts, 0)


def load(module: Any, isa: Isa, entries: Sequence[str]) -> MachineCode:
    """The machine code of a module whose functions `entries` take (job, part), `ENTRY_team` (job) where OpenMP is there.

    Takes a tenth to a quarter of a second. Raises RuntimeError on a system that forbids new code.
    """
    with _LOCK:
        machine, optimized = optimize(module, isa)
        engine = llvm.create_mcjit_compiler(optimized, machine)
        engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    parts = {entry: function(engine.get_function_address(entry)) for entry in entries}
    teams = {entry: engine.get_function_address(f"{entry}_team") for entry in entries} if openmp() else {}
    return MachineCode(parts, teams, engine)


def optimize(text: Any, isa: Isa) -> tuple[Any, Any]:
    """(target machine, optimized module), verified by LLVM; for any processor LLVM knows, this one or not."""
    triple = isa.triple or llvm.get_process_triple()
    _initialize(isa)
    text.triple = triple
    module = llvm.parse_assembly(str(text))
    module.verify()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=_cpu(isa), features=isa.features, opt=3, jit=isa.triple is None
    )
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.slp_vectorization = False  # what is generated is vectors already,
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
