"""What it is worth to keep freed memory: a block-sparse model with the settings of the C library, and with `keep_freed_memory`.

    python scripts/bench_freed_memory.py runs/minilm
    python scripts/bench_freed_memory.py runs/minilm --batch-size 8 --threads 1

Each cell is the median over several processes, of which every one computes with one model only, in its main thread or, as
servers do, in another one. Blocks are left out at random: 90 %, 16×16. Beside the time: pages touched anew in a pass, and the
largest size of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import torch

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.inputs.models import load_model
from sapp_cli.recipe.prune_section import PruneSection
from sapp_cli.recipe.schema import ModelSection
from sapp_cli.runtime.bench_results import RandomMask
from sapp_cli.runtime.example_inputs import example_inputs
from sapp_cli.runtime.heap import keep_freed_memory
from sapp_cli.runtime.machine import this_machine
from sapp_cli.runtime.random_mask import mask_at_random, replace_masked

WARM_UP = 5


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="of passes in each process")
    parser.add_argument("--processes", type=int, default=5, help="for each cell")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    print(f"{this_machine().text}\n{'batch':>5}  {'thread':<6}  {'as it is':>26}  {'kept':>26}  ratio")
    for batch in arguments.batch_size or (1, 8, 32, 64):
        for thread in ("main", "other"):
            cells: dict[str, list[dict[str, float]]] = {"as-is": [], "kept": []}
            for _ in range(arguments.processes):
                for name, runs in cells.items():  # in turns, so that what disturbs the machine disturbs both
                    runs.append(in_a_process(arguments, batch, f"{name},{thread}"))
            found = {name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in cells.items()}
            shown = [f"{c['ms']:6.1f} ms {c['pages']:7,.0f} p {c['mb']:5,.0f} MB" for c in found.values()]
            print(f"{batch:>5}  {thread:<6}  {shown[0]}  {shown[1]}  {found['as-is']['ms'] / found['kept']['ms']:.2f}")


def in_a_process(arguments: argparse.Namespace, batch: int, what: str) -> dict[str, float]:
    options = {name: getattr(arguments, name) for name in ("tokens", "block_size", "threads", "seconds")}
    options |= {"batch_size": batch, "measure": what}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, str(arguments.checkpoint), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.strip().rpartition("\n")[2])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds and pages of a pass, largest megabytes of this process."""
    (memory, thread), size = arguments.measure.split(","), arguments.block_size
    if memory == "kept" and not keep_freed_memory():
        sys.exit("this C library keeps nothing")
    torch.set_grad_enabled(False)
    loaded = load_model(open_checkpoint(arguments.checkpoint), ModelSection())
    masked = mask_at_random(loaded.model, RandomMask((size, size), 0.9), PruneSection(), loaded.stored_names)
    model, _ = replace_masked(loaded.model, masked)
    given = example_inputs(model, arguments.batch_size[0], arguments.tokens)
    found: dict[str, float] = {}

    def passes() -> None:
        with torch.inference_mode():  # of this thread
            for _ in range(WARM_UP):
                model(**given)
            times, pages = [], _pages()
            end = time.perf_counter() + arguments.seconds
            while time.perf_counter() < end:
                begin = time.perf_counter()
                model(**given)
                times.append(time.perf_counter() - begin)
            found.update(ms=1e3 * median(times), pages=(_pages() - pages) / len(times))

    if thread == "other":
        worker = threading.Thread(target=passes)
        worker.start()
        worker.join()
    else:
        passes()
    return {**found, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def _pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
