"""Measure what sparse phases gain from training the kept blocks by themselves.

    python scripts/bench_sparse_phases.py --threads 1 --out runs/sparse-phases.json
    python scripts/bench_sparse_phases.py --layers

Without --layers: a full step (forward, backward, AdamW) of a 6-layer MLP, 384 wide with 1536 hidden, in three forms that take
turns in one process: dense, without any mask; masked, the weights multiplied by their mask; kept, computing with the kept
blocks only. With --layers: the same of single layers, which is what the rule of `train.sparse_phases: auto` is made from.

The first ratio is of the medians, the second of the medians of the time that the process had a core: with one thread that is
the steadier one where others use the machine as well; with several it counts waiting, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import nn

from sapp_cli.pruner import Pruner
from sapp_cli.recipe.schema import Recipe
from sapp_cli.runtime.heap import LARGEST_IN_TRAINING, keep_freed_memory
from sapp_cli.runtime.machine import this_machine
from sapp_cli.training.optimizers import make_optimizer
from sapp_cli.training.sparse_phases import SparsePhases

WIDTH, HIDDEN = 384, 1536
TOKENS = (512, 4096)
BLOCKS = (8, 16, 32, 64)
SPARSITIES = (0.8, 0.9, 0.95)
LAYERS = ((128, 128), (384, 384), (1536, 384), (2048, 2048))
LAYER_BLOCKS = (4, 8, 16, 64)
LAYER_SPARSITIES = (0.3, 0.5, 0.7, 0.9)
LAYER_TOKENS = (8, 64, 512)
LEAST_TURNS = 9


@dataclass(frozen=True)
class Cell:
    """One form against the dense step and the masked one, seconds of a step."""

    model: str
    block: int
    sparsity: float
    tokens: int
    threads: int
    method: str
    seconds: dict[str, float]
    """Median of each form."""
    cpu_seconds: dict[str, float]
    """Median of the processor time of each form."""

    def speedup(self, over: str, *, cpu: bool = False) -> float:
        seconds = self.cpu_seconds if cpu else self.seconds
        return seconds[over] / seconds["kept"]


def in_turns(ways: dict[str, Callable[[], None]], seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """({form: median seconds of a step}, the same of processor time).

    Every form has two steps a turn, of which the second counts: in a run a step follows on its like, and finds its data in the
    caches that another form would have swept.
    """
    for run in ways.values():
        run()
        run()
    turns: list[dict[str, tuple[float, float]]] = []
    end = time.perf_counter() + seconds
    while len(turns) < LEAST_TURNS or time.perf_counter() < end:
        turn = {}
        for name, run in ways.items():
            run()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            turn[name] = time.perf_counter() - wall, time.process_time() - cpu
        turns.append(turn)
    walls, cpus = ({name: median(turn[name][clock] for turn in turns) for name in ways} for clock in (0, 1))
    return walls, cpus


def mlp(activation: type[nn.Module]) -> nn.Module:
    """Six layers: three pairs as the feed-forward layers of an encoder have them."""
    pairs: list[nn.Module] = []
    for _ in range(3):
        pairs += [nn.Linear(WIDTH, HIDDEN), activation(), nn.Linear(HIDDEN, WIDTH)]
    return nn.Sequential(*pairs)


def step_of(
    model: nn.Module, tokens: int, form: str, method: str, block: int = 16, sparsity: float = 0.9
) -> Callable[[], None]:
    """A full step of the model in this form, in the middle of a sparse phase; random data, seed 0."""
    generator = torch.Generator().manual_seed(0)
    shape: Sequence[nn.Linear] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    x = torch.randn(tokens, shape[0].in_features, generator=generator)
    target = torch.randn(tokens, shape[-1].out_features, generator=generator)
    recipe = Recipe.model_validate(
        {
            "train": {"steps": 1, "sparse_phases": "masked" if form == "dense" else form},
            "prune": {
                "method": method,
                "block_size": block,
                "sparsity": sparsity,
                "min_blocks": 1,
                "phases": {"dense": 0.0, "rounds": 1, "last_round": 0.0, "final_sparse": 1.0},
            },
        }
    )
    if form == "dense":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    else:
        pruner = Pruner(model, recipe.prune, 1)
        optimizer = make_optimizer(recipe.optimizer, pruner, total_share=1e4)
        SparsePhases(pruner, optimizer, recipe).step(0)

    def run() -> None:
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def cells_of_mlp(arguments: argparse.Namespace) -> Iterator[Cell]:
    """All blocks of one sparsity and batch in turns with the dense step."""
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[arguments.activation]
    for sparsity, tokens in product(arguments.sparsity or SPARSITIES, arguments.tokens or TOKENS):
        ways: dict[str, Callable[[], None]] = {"dense": step_of(mlp(activation), tokens, "dense", arguments.method)}
        for block in arguments.block or BLOCKS:
            for form in ("masked", "kept-blocks"):
                ways[f"{form} {block}"] = step_of(mlp(activation), tokens, form, arguments.method, block, sparsity)
        walls, cpus = in_turns(ways, arguments.seconds * len(ways))
        for block in arguments.block or BLOCKS:
            names = {"dense": "dense", "masked": f"masked {block}", "kept": f"kept-blocks {block}"}
            yield Cell(
                f"MLP {arguments.activation}",
                block,
                sparsity,
                tokens,
                arguments.threads,
                arguments.method,
                {name: walls[way] for name, way in names.items()},
                {name: cpus[way] for name, way in names.items()},
            )


def cells_of_layers(arguments: argparse.Namespace) -> Iterator[Cell]:
    for (out, columns), block, sparsity, tokens in product(
        LAYERS,
        arguments.block or LAYER_BLOCKS,
        arguments.sparsity or LAYER_SPARSITIES,
        arguments.tokens or LAYER_TOKENS,
    ):
        ways: dict[str, Callable[[], None]] = {
            name: step_of(nn.Sequential(nn.Linear(columns, out)), tokens, form, arguments.method, block, sparsity)
            for name, form in (("dense", "dense"), ("masked", "masked"), ("kept", "kept-blocks"))
        }
        walls, cpus = in_turns(ways, arguments.seconds)
        yield Cell(f"{out}×{columns}", block, sparsity, tokens, arguments.threads, arguments.method, walls, cpus)


def line(cell: Cell) -> str:
    """One row of the table."""
    times = "  ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in cell.seconds.items())
    ratios = "  ".join(
        f"{cell.speedup(over):5.2f}× ({cell.speedup(over, cpu=True):5.2f})" for over in ("dense", "masked")
    )
    return f"{cell.model:>9} {cell.block:>3} {cell.sparsity:>4.0%} {cell.tokens:>5}  {ratios}   {times}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", action="store_true", help="single layers instead of the MLP")
    parser.add_argument(
        "--method", default="sequential-attention", help="of pruning; the others have no logits to train"
    )
    parser.add_argument("--activation", choices=("relu", "gelu"), default="relu", help="between the layers of the MLP")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each form, or single layer, about")
    parser.add_argument("--block", type=int, action="append")
    parser.add_argument("--sparsity", type=float, action="append")
    parser.add_argument("--tokens", type=int, action="append")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory(LARGEST_IN_TRAINING)  # as `sapp prune` does, for all three forms
    machine = this_machine()
    print(machine.text, flush=True)
    print(
        "model block sparsity tokens  kept over dense, over masked: time (processor time); time of a step", flush=True
    )
    found = []
    for cell in cells_of_layers(arguments) if arguments.layers else cells_of_mlp(arguments):
        found.append(cell)
        print(line(cell), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(cell) for cell in found]
        arguments.out.write_text(json.dumps({"machine": asdict(machine), "cells": rows}, indent=2) + "\n")
        print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
