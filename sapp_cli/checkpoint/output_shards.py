"""Which names an output holds and in which files: exactly those of its source, whichever verb writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.tensor_file import TensorFile
from sapp_cli.checkpoint.write import shard_by_size

STEM = "model"


@dataclass(frozen=True)
class OutputShard:
    """A file to be written: its name, the logical names in it, and the source's own metadata."""

    file: str
    names: list[str]
    metadata: dict[str, str]


def output_shards(
    source: Checkpoint, max_bytes: int | None, nbytes: Callable[[str], int], added: Sequence[str] = ()
) -> list[OutputShard]:
    """The source's shards, or new ones of at most `max_bytes` of dense weights, `nbytes` of each name.

    Every name of the source is there: further names of a tied weight follow the first. `added` are names that the source
    lacks, at the end of the last shard.
    """
    part_of = {part: entry.name for entry in source.block_sparse.values() for part in entry.tensor_names}
    aliases: dict[str, list[str]] = {}
    for alias, stored in source.tied.items():
        aliases.setdefault(stored, []).append(alias)
    shards: dict[str, OutputShard] = {}
    for file in source.files:
        stored_names = dict.fromkeys(part_of.get(name, name) for name in file.tensors)
        shard = shards.setdefault(_file_name(source, file), OutputShard(_file_name(source, file), [], {}))
        shard.names.extend(name for stored in stored_names for name in (stored, *aliases.get(stored, ())))
        shard.metadata.update(_own_metadata(file))
    found = list(shards.values())
    found[-1].names.extend(added)
    if max_bytes is None:
        return found
    metadata_of = {name: shard.metadata for shard in found for name in shard.names}
    sizes = {name: nbytes(name) for name in metadata_of}
    return [
        OutputShard(file, names, {key: value for name in names for key, value in metadata_of[name].items()})
        for file, names in shard_by_size(sizes, max_bytes, STEM)
    ]


def _file_name(source: Checkpoint, file: TensorFile) -> str:
    """The source's name for a shard, with the name of the format: pytorch_model-1-of-2.bin -> model-1-of-2.safetensors."""
    if len(source.files) == 1:
        return f"{STEM}.safetensors"
    if file.path.suffix == ".safetensors":
        return file.path.name
    return re.sub(r"^pytorch_model\b", STEM, Path(file.path).stem) + ".safetensors"


def _own_metadata(file: TensorFile) -> dict[str, str]:
    return {"format": "pt", **{key: value for key, value in file.metadata.items() if not key.startswith("sapp_")}}
