"""A checkpoint of any kind, opened: its tensors by name, wherever they lie, read when they are asked for.

NumPy only; torch is imported for pickled state dicts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.block_sparse import BlockSparseMatrix
from sapp_cli.checkpoint.block_sparse_file import (
    BlockSparseEntry,
    named_in_metadata,
    parse_block_sparse,
    parse_tied,
    read_matrix,
    read_weight,
)
from sapp_cli.checkpoint.damage import AGAIN, damaged, quoted
from sapp_cli.checkpoint.dtypes import DTYPES, Bits, Float32
from sapp_cli.checkpoint.locate import Location, locate
from sapp_cli.checkpoint.reparametrized import with_masks_applied
from sapp_cli.checkpoint.safetensors import SafetensorsFile
from sapp_cli.checkpoint.state_dict import StateDictFile
from sapp_cli.checkpoint.tensor_file import TensorFile, TensorInfo, memory_errors

PACKED_WEIGHTS = (".qweight", ".qzeros", ".weight_packed", ".SCB", ".weight.absmax", ".weight.quant_map")
SCALES = ("_scale_inv", "_scale")


class Checkpoint:
    """An open checkpoint. Nothing is held but headers; every method that reads may raise CheckpointError.

    Names are of two kinds: *stored* ones are tensors in the files (`tensors`, `array`, `slabs`, …); *logical* ones are
    weights, in which the three tensors of a block-sparse weight count as one and ties have names of their own
    (`dense_names`, `dtype`, `shape`, `dense_array`, …).
    """

    def __init__(self, location: Location, files: list[TensorFile], notes: Sequence[str] = ()) -> None:
        self.path = location.path
        self.folder = location.folder
        self.config = location.config
        self.index_metadata = location.index_metadata
        self.files = tuple(files)
        self.shards: list[tuple[str, list[str]]] = [(file.path.name, list(file.tensors)) for file in files]
        found = [(file, parse_block_sparse(file)) for file in files]
        markers: dict[str, int] = {}
        for file, entries in found:
            for name, entry in entries.items():
                if entry.marker is not None and entry.marker in markers.values():
                    raise damaged(file.path, "has the marker of another weight", name)
                if entry.marker is not None:
                    markers[name] = entry.marker
        self._file_of = {name: file for name, file in _file_of_each(files).items() if name not in markers}
        self.tensors: dict[str, TensorInfo] = {name: file.tensors[name] for name, file in self._file_of.items()}
        self.block_sparse: dict[str, BlockSparseEntry] = {}
        self._block_sparse_file: dict[str, TensorFile] = {}
        for file, entries in found:
            for name, entry in entries.items():
                if name in self.tensors or name in self.block_sparse:
                    raise damaged(file.path, "is stored twice, in this file and in another shard", name)
                self.block_sparse[name] = entry
                self._block_sparse_file[name] = file
        for file in files:
            lost = next((name for name in named_in_metadata(file) if name not in self.block_sparse), None)
            if lost is not None:
                raise damaged(
                    file.path, "sapp_bsr in the metadata names it, and no file of the checkpoint has it", lost
                )
        self.tied = _ties(files, set(self.dense_names()))
        self.ignored = {name: why for file in files for name, why in file.ignored.items()}
        self.notes = (*notes, *(file.note for file in files if file.note))
        """Lines on what is not read as it stands, for whoever opened the checkpoint."""

    @property
    def is_hugging_face(self) -> bool:
        """True if the config.json beside it says which model of transformers this is."""
        return self.config is not None and bool(self.config.get("model_type"))

    @property
    def bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def require_unchanged(self, hashes: Mapping[str, str]) -> None:
        """Raise CheckpointError if a file is another than the one that was opened; not if it is gone, or has this SHA-256."""
        for file in self.files:
            if file.path.exists():
                file.require_unchanged(sha256=hashes[file.path.name])

    def hashes(self) -> dict[str, str]:
        """{name of each file: SHA-256}, of the very files that were opened."""
        return {file.path.name: file.sha256() for file in self.files}

    def require_weights(self) -> None:
        """Raise CheckpointError if there is nothing to prune or to count: no floating tensor of two or more dimensions."""
        names = self.dense_names()
        if not any(len(self.shape(name)) >= 2 and DTYPES[self.dtype(name)].floating for name in names):
            shown = ", ".join(map(quoted, names[:3])) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
            raise damaged(
                self.path, f"holds no weight, only {shown or 'an empty header'}; give the file with the model's weights"
            )

    def file(self, name: str) -> TensorFile:
        """The file of a stored tensor, or of a block-sparse weight."""
        found = self._file_of.get(name) or self._block_sparse_file.get(name)
        if found is None:
            raise damaged(self.path, "no such tensor in this checkpoint", name)
        return found

    def metadata(self, name: str) -> Mapping[str, str]:
        """The metadata of the file in which a tensor or weight lies."""
        return self.file(name).metadata

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a stored tensor, (nbytes,)."""
        return self.file(name).raw(name)

    def array(self, name: str) -> Bits:
        """A stored tensor in its storage dtype and shape."""
        return self.file(name).array(name)

    def float32(self, name: str) -> Float32:
        """The values of a stored tensor."""
        return self.file(name).float32(name)

    def slabs(self, name: str, max_bytes: int) -> Iterator[tuple[int, Bits]]:
        """(first row, rows) of a stored tensor, in one reused buffer (TensorFile.slabs)."""
        return self.file(name).slabs(name, max_bytes)

    def dense_names(self) -> list[str]:
        """The logical names of all stored weights and tensors, in file order, without the aliases of ties."""
        part_of = {part: entry.name for entry in self.block_sparse.values() for part in entry.tensor_names}
        return list(dict.fromkeys(part_of.get(name, name) for name in self.tensors))

    def dtype(self, name: str) -> str:
        """The dtype of a weight or of an alias, by its logical name."""
        return self._logical(name).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight or of an alias, by its logical name."""
        return self._logical(name).shape

    def matrix(self, name: str) -> BlockSparseMatrix:
        """A block-sparse weight as its kept blocks, every index checked."""
        name = self.tied.get(name, name)
        if name not in self.block_sparse:
            raise damaged(self.path, "is not stored block-sparse", name)
        return read_matrix(self._block_sparse_file[name], self.block_sparse[name])

    def dense_array(self, name: str) -> Bits:
        """A weight or an alias in its storage dtype and shape, zeros in place of blocks that are not stored."""
        name = self.tied.get(name, name)
        if name in self.block_sparse:
            return read_weight(self._block_sparse_file[name], self.block_sparse[name])
        return self.array(name)

    def dense_float32(self, name: str) -> Float32:
        """The values of a weight or of an alias, zeros in place of blocks that are not stored."""
        name = self.tied.get(name, name)
        if name not in self.block_sparse:
            return self.float32(name)
        array = self.dense_array(name)
        with memory_errors(self.file(name).path, name):
            return self.block_sparse[name].kind.to_float32(array)

    def _logical(self, name: str) -> TensorInfo | BlockSparseEntry:
        name = self.tied.get(name, name)
        return self.block_sparse.get(name) or self.file(name).info(name)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """The checkpoint at `path`: a Hugging Face folder, a folder of shards, an index, a safetensors file, a state dict.

    Reads the headers of all its files. Raises CheckpointError for whatever is missing, damaged, unsafe or of a kind
    that cannot be pruned (adapters, quantized weights), with the file, the tensor and what to do.
    """
    location = locate(path)
    files: list[TensorFile] = [
        SafetensorsFile(file) if file.suffix == ".safetensors" else StateDictFile(file) for file in location.files
    ]
    if location.index is not None and location.weight_map is not None:
        _check_index(location.index, location.weight_map, files)
    files, note = with_masks_applied(files)
    checkpoint = Checkpoint(location, files, [f"{location.path}: {note}"] if note else [])
    _refuse_quantized(checkpoint)
    return checkpoint


def _file_of_each(files: list[TensorFile]) -> dict[str, TensorFile]:
    found: dict[str, TensorFile] = {}
    for file in files:
        for name in file.tensors:
            other = found.setdefault(name, file)
            if other is not file:
                raise damaged(file.path, f"is in {quoted(other.path.name)} as well; each tensor has one shard", name)
    return found


def _check_index(index: Path, weight_map: Mapping[str, str], files: list[TensorFile]) -> None:
    """Raise CheckpointError unless the index and the shards name the same tensors at the same places."""
    for file in files:
        for name in (*file.tensors, *file.tied):
            if weight_map.get(name) != file.path.name:
                where = f"places it in {quoted(weight_map[name])}" if name in weight_map else "does not name it"
                raise damaged(file.path, f"is here, but {index.name} {where}; {AGAIN}", name)
    held = {file.path.name: file for file in files}
    for name, shard in weight_map.items():
        file = held[shard]
        if name not in file.tensors and name not in file.tied:
            raise damaged(index, f"is not in {quoted(shard)}, where the index places it; {AGAIN}", name)


def _ties(files: list[TensorFile], stored: set[str]) -> dict[str, str]:
    """Alias -> stored logical name, over all files."""
    tied: dict[str, str] = {}
    for file in files:
        for alias, name in {**parse_tied(file), **file.tied}.items():
            if alias in stored or tied.get(alias, name) != name:
                raise damaged(file.path, "is an alias in sapp_tied and stored as well", alias)
            if name not in stored:
                raise damaged(file.path, f"is tied to {quoted(name)}, which is not in this checkpoint", alias)
            tied[alias] = name
    return tied


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for weights that mean nothing without the scales beside them."""
    for name, info in checkpoint.tensors.items():
        packed = name.endswith(PACKED_WEIGHTS)
        for end in SCALES if name.endswith(SCALES) else ():
            weight = checkpoint.tensors.get(name.removesuffix(end))
            packed = packed or (weight is not None and weight.kind.itemsize == 1)
        if packed:
            problem = f"quantized weights ({info.dtype}) are not supported; start from the unquantized checkpoint"
            raise damaged(checkpoint.file(name).path, problem, name)
