"""A checkpoint written again in another layout, tensor by tensor: dense, block-sparse, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from sapp_cli.checkpoint.block_sparse import Mask, decode, encode, from_matrix, gather, to_matrix
from sapp_cli.checkpoint.block_sparse_file import WITHOUT_BLOCKS, block_sparse_metadata, block_sparse_out, marker_out
from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.checkpoint.output import check_free_space
from sapp_cli.checkpoint.output_shards import STEM, OutputShard, output_shards
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.statistics import block_statistics
from sapp_cli.checkpoint.write import ShardOut, TensorOut, disk_errors, write_sharded
from sapp_cli.grid import BlockGrid, MatrixLayout

Layout: TypeAlias = Literal["dense", "bsr", "both"]
Blocks: TypeAlias = tuple[MatrixLayout, BlockGrid]
SPARSE_FOLDER = "sparse"
SLAB_BYTES = 16 << 20


def dense_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, str, Bits]]:
    """(name, dtype, entries in storage dtype and the weight's own shape) of all weights, one at a time, without aliases."""
    for name in checkpoint.dense_names():
        yield name, checkpoint.dtype(name), checkpoint.dense_array(name)


def export_checkpoint(
    source: Checkpoint,
    out: Path,
    layout: Layout,
    blocks_of: Callable[[str], Blocks | None],
    max_shard_bytes: int | None = None,
    disk: Path | None = None,
    beside: int = 0,
) -> list[Path]:
    """Write the weights of `source` into the folder `out`: dense ones there, block-sparse ones into its folder `sparse`.

    `blocks_of` says which dense weights become block-sparse, and how (None: as they are); those that are stored so already
    keep their blocks. Shards are the source's, or of at most `max_shard_bytes` of dense weights. Needs memory for a few
    times the largest weight, and for the block masks. Dense to block-sparse and back gives the same bits, except that −0
    in a block without anything else becomes +0 (also in the dense file of "both": its two files agree bit for bit).
    `disk`: the folder to name if its disk is too full; else `out`. `beside`: bytes of what the caller writes
    there later. Returns the files. Raises CheckpointError for a damaged source, ResourceError if the disk does not take
    the files.
    """
    shards = output_shards(source, max_shard_bytes, partial(_dense_bytes, source))
    blocks = _block_sparse_weights(source, blocks_of)
    kept: dict[str, Mask] = {}
    if layout != "dense":
        kept = {name: block_statistics(source, name, *about).kept for name, about in blocks.items()}
    folders: list[tuple[Path, list[ShardOut]]] = []
    if layout != "bsr":
        zeroed = {name: blocks[name] for name in kept}
        folders.append((out, [_dense_shard(source, shard, zeroed) for shard in shards]))
    if layout != "dense":
        numbers = {name: number for number, name in enumerate(blocks, 1)} if source.is_hugging_face else {}
        sparse = [_sparse_shard(source, shard, blocks, kept, numbers) for shard in shards]
        folders.append((out / SPARSE_FOLDER, sparse))
    check_free_space(disk or out, beside + sum(shard.nbytes for _, shards_out in folders for shard in shards_out))
    written = []
    for folder, shards_out in folders:
        with disk_errors(out):
            folder.mkdir(parents=True, exist_ok=True)
        written += write_sharded(folder, STEM, shards_out, source.index_metadata)
    return written


def _block_sparse_weights(source: Checkpoint, blocks_of: Callable[[str], Blocks | None]) -> dict[str, Blocks]:
    found = {}
    for name in source.dense_names():
        entry = source.block_sparse.get(name)
        about = (entry.layout, entry.grid) if entry is not None else blocks_of(name)
        if about is not None and source.dtype(name) not in WITHOUT_BLOCKS:
            found[name] = about
    return found


def _dense_bytes(source: Checkpoint, name: str) -> int:
    return TensorOut(name, source.dtype(name), source.shape(name), list).nbytes


def _dense_shard(source: Checkpoint, shard: OutputShard, zeroed: Mapping[str, Blocks]) -> ShardOut:
    """Each name with its own entries, those of a tied weight as well: `load_state_dict` of any library wants them all."""
    tensors = []
    for name in shard.names:
        stored = source.tied.get(name, name)
        data: Callable[[], Bits | Iterator[Bits]] = partial(source.dense_array, stored)
        if stored in source.block_sparse:
            pass
        elif stored in zeroed:
            data = partial(_with_plain_zeros, source, stored, *zeroed[stored])
        else:
            data = partial(_slabs, source, stored)
        tensors.append(TensorOut(name, source.dtype(name), source.shape(name), data))
    return ShardOut(shard.file, tensors, shard.metadata)


def _sparse_shard(
    source: Checkpoint,
    shard: OutputShard,
    blocks: Mapping[str, Blocks],
    kept: Mapping[str, Mask],
    numbers: Mapping[str, int],
) -> ShardOut:
    """Each weight once; its further names are in the metadata. `numbers`: those of the markers, if there are to be any."""
    tensors: list[TensorOut] = []
    names = [name for name in shard.names if name not in source.tied]
    for name in names:
        if name in blocks:
            layout, grid = blocks[name]
            values = partial(_kept_values, source, name, layout, grid, kept[name])
            tensors += block_sparse_out(name, source.dtype(name), grid, kept[name], values)
            if name in numbers:
                tensors.append(marker_out(name, source.dtype(name), source.shape(name)[0], numbers[name]))
        else:
            data = partial(_slabs, source, name)
            tensors.append(TensorOut(name, source.dtype(name), source.shape(name), data))
    here = {name: blocks[name] for name in names if name in blocks}
    tied = {alias: source.tied[alias] for alias in shard.names if alias in source.tied}
    return ShardOut(shard.file, tensors, {**shard.metadata, **block_sparse_metadata(here, tied, bool(numbers))})


def _slabs(source: Checkpoint, name: str) -> Iterator[Bits]:
    """The weight's rows, a few at a time."""
    return (rows for _, rows in source.slabs(name, SLAB_BYTES))


def _with_plain_zeros(source: Checkpoint, name: str, layout: MatrixLayout, grid: BlockGrid) -> Bits:
    """The weight with +0 in every block that holds zeros only, as its block-sparse form gives it back."""
    matrix = to_matrix(source.dense_array(name), layout)
    return from_matrix(decode(encode(matrix, grid, DTYPES[source.dtype(name)]), grid), layout)


def _kept_values(source: Checkpoint, name: str, layout: MatrixLayout, grid: BlockGrid, kept: Mask) -> Bits:
    if name in source.block_sparse:
        sparse = source.matrix(name)
        if len(sparse.values) == kept.sum():
            return sparse.values
    return gather(to_matrix(source.dense_array(name), layout), grid, kept)
