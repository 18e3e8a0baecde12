"""`sapp export`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import (
    LAYOUTS,
    OUTPUT,
    JsonOption,
    LayoutName,
    QuietOption,
    SetOption,
    VerboseOption,
)

ONNX = "A file for other runtimes"
DEFAULT_OPSET = 20
"""The first with an operator for GELU."""


class FormatName(str, Enum):
    """What else than a checkpoint can be written."""

    ONNX = "onnx"


class RuntimeName(str, Enum):
    """Where the forms of layers are measured."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def export(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Any checkpoint, an output of sapp or not.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder or ONNX file to make.", show_default=False)
    ],
    layout: Annotated[
        LayoutName | None,
        typer.Option("--layout", metavar=LAYOUTS, help="Which weight files to write.", show_default=False),
    ] = None,
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="N|RxC",
            help="For weights that no run of sapp has decided on: 16, or 16x32 (out × in); else 16x16.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest file: 5GB; else as the source is split.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format_: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            metavar="onnx",
            help="Write OUT as a file in standard ONNX operators.",
            rich_help_panel=ONNX,
        ),
    ] = None,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(
            "--runtime",
            metavar="onnxruntime|openvino",
            help="Measure layers there; else in the installed one.",
            rich_help_panel=ONNX,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            metavar="N",
            help=f"ONNX operator set; else {DEFAULT_OPSET}.",
            show_default=False,
            rich_help_panel=ONNX,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="RECIPE",
            help="Builds the model where no config.json does.",
            show_default=False,
            rich_help_panel=ONNX,
        ),
    ] = None,
    sets: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output of sapp that is there.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a checkpoint again without training: in another layout (dense, block-sparse or both), or for other runtimes.

    The weights keep every bit, but for −0 in a block of zeros, which becomes +0. A weight of a checkpoint that sapp did
    not prune becomes block-sparse where that makes it smaller.

    An ONNX file has standard operators only: pruned layers gather their blocks and multiply them, where that is faster
    than the dense layer.

    \b
    sapp export ./my-model-sparse -o ./my-model-bsr --layout bsr
    sapp export pruned.safetensors -o out --layout both --block-size 32
    sapp export ./my-model-sparse -o model.onnx --format onnx
    """
    if format_ is not None:
        if layout or block_size or max_shard_size:
            raise typer.BadParameter(
                "they are for checkpoints, leave them out", param_hint="--layout, --block-size and --max-shard-size"
            )
        from sapp_cli.cli.export_onnx import export_onnx

        export_onnx(
            path,
            out,
            runtime and runtime.value,
            opset or DEFAULT_OPSET,
            recipe,
            sets,
            overwrite,
            as_json,
            quiet,
            verbose,
        )
        return
    if layout is None:
        raise typer.BadParameter(f"say what to write: --layout {LAYOUTS}, or --format onnx", param_hint="--layout")
    if runtime or opset or recipe or sets:
        raise typer.BadParameter("they go with --format onnx", param_hint="--runtime, --opset and --recipe")
    from sapp_cli.checkpoint.write import parse_size
    from sapp_cli.cli.notes import describe, sayer
    from sapp_cli.cli.report import block_shape
    from sapp_cli.exporting import export as write_layout
    from sapp_cli.report.wording import size_text, times_smaller

    block = block_shape(block_size)
    shard_bytes = parse_size(max_shard_size) if max_shard_size else None
    describe(path, quiet, verbose)
    result = write_layout(path, out, layout.value, block, shard_bytes, overwrite, sayer(quiet))
    if as_json:
        print_document(result.as_json())
        return
    dense, sparse = result.bytes_of(sparse=False), result.bytes_of(sparse=True)
    smaller = times_smaller(result.report.model.bytes_dense, sparse)
    parts = [f"{size_text(dense)} dense"] if dense else []
    parts += [f"{size_text(sparse)} block-sparse" + (f" ({smaller})" if smaller else "")] if sparse else []
    print(f"{len(result.report.pruned)} of {len(result.report.layers)} layers are pruned")
    print(f"wrote {', '.join(parts)} to {result.out}")
