"""`sapp bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sapp_cli.cli.options import JsonOption, QuietOption

if TYPE_CHECKING:
    from sapp_cli.runtime.bench_results import BenchResult

ESTIMATE = "Estimate before any training"


def bench(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Output of sapp prune; with --random-mask any Hugging Face checkpoint.",
            show_default=False,
        ),
    ],
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N[,N…]", help="Inputs at a time, e.g. 1,8.")
    ] = "1,8",
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens of an input, for models that read text.")
    ] = 128,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads; else as many as torch takes.", show_default=False)
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights and activations in bfloat16; else fp32.")] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Seconds to measure the model, for each batch size.")
    ] = 3.0,
    random_mask: Annotated[
        bool,
        typer.Option(
            "--random-mask", help="Leave out blocks of a dense checkpoint at random.", rich_help_panel=ESTIMATE
        ),
    ] = False,
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size", metavar="N|ROWSxCOLUMNS", help="16, or 16x32 (out × in).", rich_help_panel=ESTIMATE
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of the blocks to leave out.", rich_help_panel=ESTIMATE)
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latency, throughput and memory on this machine: dense against block-sparse, each layer and the whole model.

    \b
    sapp bench ./my-model-sparse --batch-size 1,8 --sequence-length 128
    sapp bench ./my-model --random-mask --block-size 16 --sparsity 0.9
    """
    from sapp_cli.cli.report import block_shape

    sizes = _batch_sizes(batch_size)
    if not random_mask and (block_size or sparsity is not None):
        raise typer.BadParameter("they go with --random-mask", param_hint="--block-size and --sparsity")
    if sparsity is not None and not 0 < sparsity < 1:
        raise typer.BadParameter(f"{sparsity:g} is no share between 0 and 1", param_hint="--sparsity")
    block = block_shape(block_size) or (16, 16)

    from sapp_cli.runtime.bench_results import RandomMask, Settings
    from sapp_cli.runtime.benchmark import bench as measure

    mask = RandomMask(block, 0.9 if sparsity is None else sparsity) if random_mask else None
    result = measure(
        path,
        Settings(sizes, sequence_length, mask, bf16, threads, seconds),
        (lambda text: None) if quiet else lambda text: print(text, file=sys.stderr),
    )
    if as_json:
        print(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(result)


def _batch_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of batch sizes; write 1,8", param_hint="--batch-size")
    return tuple(map(int, parts))


def _print(result: BenchResult) -> None:
    from rich.table import Table

    from sapp_cli.cli.tables import stdout
    from sapp_cli.report.wording import by, percent, size_text

    console = stdout()
    console.print(f"{result.model}; {result.replaced} layers block-sparse", markup=False)
    console.print(result.machine.text, markup=False)
    if result.settings.random_mask is not None:
        console.print("blocks left out at random: an estimate of speed; the outputs mean nothing")
    console.print()
    layers = Table(box=None, pad_edge=False, header_style="bold")
    layers.add_column("layers", no_wrap=True, overflow="ellipsis")
    for head in ("matrix", "block", "kept", "rows", "dense", "block-sparse", "spread", "speed-up", "way"):
        layers.add_column(head, justify="right", no_wrap=True)
    for layer in result.layers:
        more = f" and {len(layer.names) - 1} alike" if len(layer.names) > 1 else ""
        layers.add_row(
            f"{layer.names[0]}{more}",
            by(layer.matrix),
            by(layer.block),
            percent(layer.kept_blocks / layer.blocks),
            f"{layer.rows:,}",
            time_text(layer.times.dense.median),
            time_text(layer.times.sparse.median),
            f"± {time_text(layer.times.sparse.spread / 2)}",
            f"{layer.times.speedup:.1f}×",
            layer.way,
        )
    console.print(layers)
    console.print()
    models = Table(box=None, pad_edge=False, header_style="bold")
    for head in (
        "whole model, batch",
        "dense",
        "spread",
        "block-sparse",
        "spread",
        "speed-up",
        "inputs/s",
        "difference",
    ):
        models.add_column(head, justify="right", no_wrap=True)
    for model in result.models:
        dense, sparse = model.times.dense, model.times.sparse
        models.add_row(
            f"{model.batch_size}",
            time_text(dense.median),
            f"± {time_text(dense.spread / 2)}",
            time_text(sparse.median),
            f"± {time_text(sparse.spread / 2)}",
            f"{model.times.speedup:.2f}×",
            f"{model.batch_size / dense.median:,.1f} → {model.batch_size / sparse.median:,.1f}",
            f"{model.difference:.0e} ≤ {model.tolerance:.0e}",
        )
    console.print(models)
    console.print()
    memory, files = result.weight_bytes, result.file_bytes
    console.print(
        f"weights in memory: {size_text(memory['dense'])} dense, {size_text(memory['block_sparse'])} block-sparse"
    )
    beside = f", {size_text(files['block_sparse'])} block-sparse" if "block_sparse" in files else ""
    console.print(f"weights on disk: {size_text(files['given'])} as given{beside}")


def time_text(seconds: float) -> str:
    """Three digits: 0.0123 -> "12.3 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("the last unit takes everything")
