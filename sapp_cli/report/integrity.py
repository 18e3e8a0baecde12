"""What always holds of an output of sapp, looked at in its files: the gates of `sapp check` that nobody has to ask for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.output import MANIFEST, sha256_file
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.grid import MatrixLayout
from sapp_cli.report.bands import MatrixRows, bands, same_bits
from sapp_cli.report.gates import Gate
from sapp_cli.report.inspect import SPARSITY_FILE, recorded_layers
from sapp_cli.report.run import RunRecord
from sapp_cli.report.sparsity import SparsityReport
from sapp_cli.report.wording import by, counted

MOST_NAMED = 3
TOLERANCE = 1e-12  # of a share that was written and read as decimal digits


def check_agreement(dense: Checkpoint | None, sparse: Checkpoint | None) -> Gate:
    """The dense and the block-sparse files hold the same weights, bit for bit."""
    name = "layouts-agree"
    if dense is None or sparse is None:
        return Gate(name, "does not apply", "there is one layout only")
    problems = list(_differences(dense, sparse))
    if problems:
        return Gate(name, "not met", f"dense and block-sparse files differ: {_listed(problems)}")
    count = len(sparse.dense_names()) + len(sparse.tied)
    return Gate(name, "met", f"{count} weights and tensors are the same bit for bit, dense and block-sparse")


def check_hashes(folder: Path | None, run: RunRecord | None, files: Iterable[Path]) -> Gate:
    """The weight files are those that the manifest names, by their SHA-256, all of them and no others.

    Raises CheckpointError for a manifest that names files outside its folder.
    """
    name = "hashes"
    if folder is None or run is None:
        return Gate(name, "does not apply", f"there is no {MANIFEST} of sapp")
    if not run.outputs:
        return Gate(name, "not met", f"{MANIFEST} names no files")
    folder, problems = folder.absolute(), []
    for file, expected in run.outputs.items():
        relative = PurePosixPath(file)
        if relative.is_absolute() or ".." in relative.parts or "\\" in file:
            raise damaged(folder / MANIFEST, f"names {quoted(file)}, which is outside its folder")
        if not (folder / file).is_file():
            problems.append(f"{quoted(file)} is missing")
        elif sha256_file(folder / file) != expected:
            problems.append(f"{quoted(file)} is not the file that was written")
    read = [Path(os.path.relpath(file.absolute(), folder)).as_posix() for file in files]
    problems += [f"{quoted(file)} is not in it" for file in read if file not in run.outputs]
    if problems:
        return Gate(name, "not met", f"files do not match {MANIFEST}: {_listed(problems)}")
    count = "1 file has" if len(run.outputs) == 1 else f"{len(run.outputs)} files have"
    return Gate(name, "met", f"{count} the SHA-256 that {MANIFEST} names")


def check_kept_blocks(folder: Path | None, report: SparsityReport, sparse: Checkpoint | None) -> Gate:
    """The blocks that sparsity.json and the block-sparse files call kept are those with anything nonzero in them."""
    name = "kept-blocks"
    recorded = recorded_layers(folder)
    entries = [] if sparse is None else list(sparse.block_sparse.values())
    if recorded is None and not entries:
        return Gate(name, "does not apply", f"there is neither a {SPARSITY_FILE} nor a block-sparse weight")
    problems, blocks = [], 0
    measured = {layer.name: layer for layer in report.layers}
    for layer in (recorded or {}).values():
        found = measured.get(layer.name)
        if found is None:
            problems.append(f"{quoted(layer.name)} is in {SPARSITY_FILE}, not in the weights")
        elif layer.kept_blocks is not None and layer.kept_blocks != found.kept_blocks:
            problems.append(
                f"{quoted(layer.name)} has {found.kept_blocks:,} kept blocks, {SPARSITY_FILE} says {layer.kept_blocks:,}"
            )
        elif abs(layer.sparsity - found.sparsity) > TOLERANCE:
            problems.append(
                f"{quoted(layer.name)} has a sparsity of {found.sparsity}, {SPARSITY_FILE} says {layer.sparsity}"
            )
        else:
            blocks += layer.kept_blocks or 0
    for entry in entries:
        assert sparse is not None  # entries are its own
        kept = int(block_statistics(sparse, entry.name, entry.layout, entry.grid).kept.sum())
        if kept != entry.kept:
            problems.append(f"{quoted(entry.name)} stores {counted(entry.kept - kept, 'block')} of zeros only")
        blocks += 0 if recorded else kept
    if problems:
        return Gate(name, "not met", f"records and weights differ: {_listed(problems)}")
    return Gate(name, "met", f"{blocks:,} blocks are recorded as kept, and these are the nonzero ones")


def _differences(dense: Checkpoint, sparse: Checkpoint) -> Iterator[str]:
    """A line for each weight or tensor, alias of a tie or not, that is not the same in both."""
    here, there = ({*checkpoint.dense_names(), *checkpoint.tied} for checkpoint in (dense, sparse))
    for name in sorted(here | there):
        if name not in here or name not in there:
            yield f"{quoted(name)} is in the {'dense' if name in here else 'block-sparse'} files only"
        elif (dense.dtype(name), dense.shape(name)) != (sparse.dtype(name), sparse.shape(name)):
            types = [f"{side.dtype(name)} of {by(side.shape(name)) or 'one entry'}" for side in (dense, sparse)]
            yield f"{quoted(name)} is {types[0]} dense, {types[1]} block-sparse"
        elif not _agree(dense, sparse, name):
            yield f"{quoted(name)} has other bits"


def _agree(dense: Checkpoint, sparse: Checkpoint, name: str) -> bool:
    """True if the weight or tensor is the same in both, bit for bit; read in bands, whatever its size."""
    entries = [side.block_sparse.get(side.tied.get(name, name)) for side in (dense, sparse)]
    layouts = [entry.layout for entry in entries if entry is not None]
    if len(layouts) == 2 and layouts[0] != layouts[1]:
        return same_bits(dense.dense_array(name), sparse.dense_array(name))
    shape = dense.shape(name)
    # A tensor that is no weight of layers is compared as a column of rows, however many axes it has.
    layout = layouts[0] if layouts else _flat(shape)
    if layout is None:
        return True  # no entries at all
    one, other = MatrixRows(dense, name, layout), MatrixRows(sparse, name, layout)
    itemsize = DTYPES[dense.dtype(name)].itemsize
    return all(same_bits(one.read(*band), other.read(*band)) for band in bands(layout, itemsize))


def _flat(shape: tuple[int, ...]) -> MatrixLayout | None:
    entries = math.prod(shape)
    return MatrixLayout("linear", (entries, 1)) if entries else None


def _listed(problems: list[str]) -> str:
    more = len(problems) - MOST_NAMED
    return "; ".join(problems[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
