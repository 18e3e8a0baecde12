"""What the masks cost in training: a step of a pruned network against the same step of the plain one.

    python -m scripts.bench_training --threads 1 --out runs/training.json
    python -m scripts.bench_training --case mlp-512 --compile

Cases: an MLP of 6 Linear layers, 384 wide with 1536 hidden, at 512 and 4096 tokens, and one 4096 × 4096 layer at 512 tokens;
blocks of 16, sparsity 90 %, fp32, fused AdamW. A step is forward, loss, backward and optimizer, for the pruned network
`Pruner.step` before it as well. All take turns in one process; for each phase the ratio to the plain step of the same turn:
median, and the quartiles of all turns. Peak memory is that of a process of its own for each, beyond what it held before the
network was made, with torch and the generated code loaded; the least of three.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from torch.nn import functional as F

import sapp_cli as sapp
from sapp_cli.core.schedule import Phase
from sapp_cli.grid import BlockGrid
from sapp_cli.passes.block_passes import block_passes
from sapp_cli.runtime.heap import LARGEST_IN_TRAINING, keep_freed_memory
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.timing import time_in_turns
from scripts.memory import peak_mib, resident_mib

PLAIN = "plain"
PHASES = {Phase.DENSE.value: 0, Phase.SPARSIFICATION.value: 500, Phase.SPARSE.value: 3500}
"""The first step of each, of 10,000: the timetable `fine-tune`."""
STEPS = 10_000
PEAKS = 3


@dataclass(frozen=True)
class Case:
    """A network and the rows of its batch."""

    widths: tuple[int, ...]
    tokens: int

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        return nn.Sequential(*layers[:-1])


CASES = {
    "mlp-512": Case((384, 1536) * 3 + (384,), 512),
    "mlp-4096": Case((384, 1536) * 3 + (384,), 4096),
    "wide-512": Case((4096, 4096), 512),
}


@dataclass(frozen=True)
class Overhead:
    """One phase of one case against the plain step."""

    case: str
    phase: str
    compiled: bool
    seconds: float
    """Median of the pruned step."""
    plain_seconds: float
    ratio: float
    """Median over the turns of pruned step by plain step."""
    quartiles: tuple[float, float]
    memory: float | None = None
    """Peak bytes by the plain network's."""


def stepper(case: Case, way: str, compiled: bool, block: int) -> Callable[[], None]:
    """One training step, to be called again and again; `way` is a phase or `plain`."""
    network = case.network()
    pruner = None if way == PLAIN else sapp.Pruner(network, {"block_size": block, "min_blocks": 1}, STEPS)
    groups = network.parameters() if pruner is None else pruner.parameter_groups(lr=1e-4)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    x, y = torch.randn(case.tokens, case.widths[0]), torch.randn(case.tokens, case.widths[-1])
    forward = torch.compile(network) if compiled else network

    def train(moment: int) -> None:
        if pruner is not None:
            pruner.step(moment, optimizer)
        F.mse_loss(forward(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    if pruner is not None and way != Phase.DENSE.value:
        train(0)  # gradients, by which the blocks rank
        if way == Phase.SPARSE.value:
            pruner.step(PHASES[way] - 1)  # where the last of them go
    steps = count(PHASES.get(way, 0))
    return lambda: train(next(steps))


def overheads(name: str, compiled: bool, block: int, seconds: float) -> list[Overhead]:
    """All phases of a case, timed in turns."""
    torch.compiler.reset()  # what the cases before compiled counts against the limit of one function
    ways = {way: stepper(CASES[name], way, compiled, block) for way in (PLAIN, *PHASES)}
    timings = time_in_turns(ways, budget=seconds, least_turns=9)
    plain = timings[PLAIN]
    found = []
    for phase in PHASES:
        ratios = [mine / theirs for mine, theirs in zip(timings[phase].seconds, plain.seconds, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        found.append(Overhead(name, phase, compiled, timings[phase].median, plain.median, median(ratios), (low, high)))
    return found


def peak(name: str, way: str, compiled: bool, block: int) -> float:
    """MiB of three steps in this process, beyond what it holds now."""
    block_passes(BlockGrid((block, block), (block, block)))  # LLVM and its code, once a process, as torch is
    before = resident_mib()
    step = stepper(CASES[name], way, compiled, block)
    for _ in range(3):
        step()
    return peak_mib() - before


def peak_in_child(name: str, way: str, arguments: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "scripts.bench_training", "--case", name, "--peak-of", way]
    command += ["--threads", str(arguments.threads), "--block-size", str(arguments.block_size)]
    command += ["--compile"] if arguments.compile else []
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(PEAKS)]
    return min(float(run.stdout) for run in runs)  # what a heap keeps beyond it differs by a tenth from run to run


def line(found: Overhead) -> str:
    """One row of the table."""
    low, high = found.quartiles
    memory = "" if found.memory is None else f"   memory {found.memory:.3f}"
    return (
        f"{found.case:<9} {found.phase:<15} {found.ratio:.3f} [{low:.3f}, {high:.3f}]   "
        f"{found.seconds * 1e3:,.1f} of {found.plain_seconds * 1e3:,.1f} ms{memory}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each case, about")
    parser.add_argument("--compile", action="store_true", help="both networks through torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak-of", choices=(PLAIN, *PHASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory(LARGEST_IN_TRAINING)  # as `sapp prune` does, for plain and pruned networks
    if arguments.peak_of:
        print(peak(arguments.case[0], arguments.peak_of, arguments.compile, arguments.block_size))
        return
    machine = this_machine()
    print(machine.text, flush=True)
    print("case      phase           step by plain step: median [quartiles]; medians; peak memory by the plain one's")
    found = []
    for name in arguments.case or CASES:
        plain = None if arguments.no_memory else peak_in_child(name, PLAIN, arguments)
        for each in overheads(name, arguments.compile, arguments.block_size, arguments.seconds):
            memory = None if plain is None else peak_in_child(name, each.phase, arguments) / plain
            found.append(Overhead(**{**asdict(each), "memory": memory}))
            print(line(found[-1]), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(each) for each in found]
        arguments.out.write_text(json.dumps({"machine": asdict(machine), "overheads": rows}, indent=2) + "\n")
        print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
