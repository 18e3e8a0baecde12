"""What verbs say on stderr beside their data: nothing with --quiet, more with --verbose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

Say = Callable[[str], None]


def sayer(quiet: bool) -> Say:
    """A function that prints a line on stderr, or does nothing."""
    return (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))


def describe(path: Path, quiet: bool, verbose: bool) -> None:
    """Which weights of a file are read where it holds several; with --verbose what a checkpoint is made of, from its headers.

    Raises CheckpointError like whatever comes next.
    """
    if quiet:
        return
    from sapp_cli.checkpoint.source import open_checkpoint
    from sapp_cli.report.wording import printable, size_text

    checkpoint = open_checkpoint(path)
    for note in checkpoint.notes:
        print(printable(note), file=sys.stderr)
    if not verbose:
        return
    weights, files = len(checkpoint.dense_names()), len(checkpoint.files)
    text = (
        f"{printable(str(path))}: {weights:,} tensors, {size_text(checkpoint.bytes)} in {files} file{'s'[: files > 1]}"
    )
    parts = [f"{len(checkpoint.block_sparse):,} of them block-sparse"] if checkpoint.block_sparse else []
    parts += [f"{len(checkpoint.tied):,} further names of tied weights"] if checkpoint.tied else []
    parts += [f"{printable(name)} left out, {why}" for name, why in checkpoint.ignored.items()]
    print("; ".join([text, *parts]), file=sys.stderr)
