"""`sapp report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sapp_cli.cli.options import BlockSizeOption, JsonOption, parse_block_size


def report(
    path: Annotated[
        Path, typer.Argument(help="Any checkpoint, an output of sapp or not.", show_default=False)
    ],
    block_size: BlockSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    r"""Show the sparsity of a checkpoint, layer by layer, as counted in its files.

    \b
    sapp report ./my-model-sparse
    sapp report any.safetensors --block-size 32 --json
    """
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.cli.tables import layer_table, stdout
    from sapp_cli.report.inspect import layer_facts
    from sapp_cli.report.measure import measure

    block = parse_block_size(block_size)
    if isinstance(block, str) or block == 0 or (isinstance(block, list) and 0 in block):
        raise typer.BadParameter(f"'{block_size}' is no block; write 16, or 16x32", param_hint="--block-size")
    checkpoint = open_checkpoint(path)
    shape = (block, block) if isinstance(block, int) else (block[0], block[1]) if block else None
    found = measure(checkpoint, layer_facts(checkpoint, shape))
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        stdout().print(layer_table(found, reasons=False))
