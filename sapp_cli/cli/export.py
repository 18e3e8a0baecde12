"""`sapp export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.document import print_document
from sapp_cli.cli.options import LAYOUTS, OUTPUT, JsonOption, LayoutName, QuietOption, VerboseOption


def export(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Any checkpoint, an output of sapp or not.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder to make.", show_default=False)],
    layout: Annotated[
        LayoutName, typer.Option("--layout", metavar=LAYOUTS, help="Which weight files to write.", show_default=False)
    ],
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output of sapp that is there.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a checkpoint again in another layout, without training: dense, block-sparse (bsr) or both.

    The weights keep every bit, but for −0 in a block of zeros, which becomes +0. A weight of a checkpoint that sapp did
    not prune becomes block-sparse where that makes it smaller.

    \b
    sapp export ./my-model-sparse -o ./my-model-bsr --layout bsr
    sapp export pruned.safetensors -o out --layout both --block-size 32
    """
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
