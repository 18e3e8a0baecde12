"""A checkpoint written again in another layout, with everything that makes the folder an output: `sapp export`.

checkpoint → which weights in which blocks → files → counted again → records and companions
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sapp_cli._version import __version__
from sapp_cli.checkpoint.export import SPARSE_FOLDER, Blocks, Layout, export_checkpoint
from sapp_cli.checkpoint.json_text import CONFIG_LIMIT, read_object
from sapp_cli.checkpoint.output import (
    MANIFEST,
    MARKER,
    companion_bytes,
    copy_companions,
    is_output,
    sha256_file,
    write_json,
)
from sapp_cli.checkpoint.output_folder import check_output, output_folder
from sapp_cli.checkpoint.source import Checkpoint, open_checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.checkpoint.write import disk_errors
from sapp_cli.errors import UsageError
from sapp_cli.outputs.card import FileSizes, write_card
from sapp_cli.outputs.manifest import VERSION
from sapp_cli.outputs.sparse_folder import finish_sparse_folder
from sapp_cli.report.gallery import Gallery
from sapp_cli.report.html import HTML_FILE, write_html
from sapp_cli.report.inspect import SPARSITY_FILE, layer_facts
from sapp_cli.report.measure import measure
from sapp_cli.report.run import METRICS_FILE, home_of, read_run
from sapp_cli.report.sparsity import LayerFacts, SparsityReport
from sapp_cli.report.wording import by

OF_THE_RUN = (METRICS_FILE, "recipe.yaml")


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote."""

    out: Path
    layout: Layout
    files: Mapping[str, int]  # path below OUT -> bytes
    report: SparsityReport

    def bytes_of(self, sparse: bool) -> int:
        """Of the dense or of the block-sparse files."""
        return sum(size for file, size in self.files.items() if file.startswith(f"{SPARSE_FOLDER}/") == sparse)

    def as_json(self) -> dict[str, Any]:
        """The document of `export --json`."""
        return {"out": str(self.out), "layout": self.layout, "files": dict(self.files), **self.report.as_json()}


def export(
    path: Path,
    out: Path,
    layout: Layout,
    block: tuple[int, int] | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Write the checkpoint at `path` to OUT in this layout. `block`: for weights that no run has decided on; else 16×16.

    OUT appears whole or not at all, and is an output like any other: it has hashes, a report and what a run left in its
    source. `say` gets a line for what a killed run left behind and is put back. Raises UsageError where nothing could be
    block-sparse, CheckpointError for a damaged source.
    """
    check_output(out, path, overwrite)
    source = open_checkpoint(path)
    source.require_weights()
    home = home_of(source)
    facts = layer_facts(source, block)
    _check_block(source, block)
    blocks = {} if layout == "dense" else _blocks(source, facts)
    if layout != "dense" and not blocks and not source.block_sparse:
        size = by(block or (16, 16))
        raise UsageError(
            f"{path}: no weight becomes smaller without its zero blocks of {size}; try a smaller --block-size, or prune first"
        )
    with output_folder(out, path, overwrite, say) as staged:
        companions = copy_companions(home, staged) if home is not None else []
        copies = 0 if home is None or layout == "dense" else companion_bytes(home)
        files = export_checkpoint(
            source, staged, layout, _lookup(blocks), max_shard_bytes, out.absolute().parent, copies
        )
        names = [file.relative_to(staged).as_posix() for file in files]
        _carry_over(home, staged)
        hashes = {name: sha256_file(staged / name) for name in names}
        manifest = _manifest(source, home, hashes)
        write_json(staged / MANIFEST, manifest)

        written, gallery = open_checkpoint(staged), Gallery()
        report = measure(written, facts, gallery.add)
        write_json(staged / SPARSITY_FILE, report.as_json())
        write_html(staged / HTML_FILE, out.name, report, gallery, read_run(staged))
        result = ExportResult(out, layout, {name: (staged / name).stat().st_size for name in names}, report)
        before = sum(file.path.stat().st_size for file in source.files)
        sizes = FileSizes(before, result.bytes_of(sparse=False), result.bytes_of(sparse=True))
        write_card(staged, out.name, report, manifest, sizes, _architecture(source), companions)
        finish_sparse_folder(staged, out.name, report, source, _architecture(source), companions)
    return result


def _check_block(source: Checkpoint, block: tuple[int, int] | None) -> None:
    """Raise UsageError where the blocks of a weight that is stored block-sparse would have to be cut anew."""
    for entry in source.block_sparse.values():
        if block is not None and block != entry.grid.block:
            raise UsageError(
                f"'{entry.name}' is stored in blocks of {by(entry.grid.block)}, not {by(block)}; leave --block-size out, "
                "or export --layout dense first"
            )


def _blocks(source: Checkpoint, facts: list[LayerFacts]) -> dict[str, Blocks]:
    """{name: layout and grid} of the dense weights to store block-sparse, pruned by a run or not: if it saves bytes."""
    found: dict[str, Blocks] = {}
    for layer in facts:
        if layer.layout is None or layer.grid is None or layer.pruned is False:
            continue
        kept = block_statistics(source, layer.name, layer.layout, layer.grid).kept
        if not layer.grid.saves(int(np.count_nonzero(kept)), layer.itemsize):
            continue
        found[source.tied.get(layer.name, layer.name)] = (layer.layout, layer.grid)
    return found


def _lookup(blocks: Mapping[str, Blocks]) -> Callable[[str], Blocks | None]:
    return blocks.get


def _carry_over(home: Path | None, staged: Path) -> None:
    """What a run wrote about itself."""
    if home is None or not is_output(home):
        return
    for name in OF_THE_RUN:
        if (home / name).is_file():
            with disk_errors(staged):
                shutil.copyfile(home / name, staged / name)


def _architecture(source: Checkpoint) -> str | None:
    """The class that config.json names."""
    names = (source.config or {}).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _manifest(source: Checkpoint, home: Path | None, outputs: Mapping[str, str]) -> dict[str, Any]:
    """The run's manifest with the new files in it; of a checkpoint without one, what went in and what came out."""
    if home is not None and is_output(home):
        run = read_object(home / MANIFEST, "the manifest", CONFIG_LIMIT)
        return {**run, "outputs": dict(outputs), "exported_with": __version__}
    return {"version": VERSION, MARKER: __version__, "inputs": source.hashes(), "outputs": dict(outputs), "metrics": {}}
