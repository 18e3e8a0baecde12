"""The pruned weights as files: dense in the source's names, dtypes and shards, and block-sparse beside them.

Every tensor is made when its turn to be written comes. Tensors the model does not know pass through verbatim.

R, C: block rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sapp_cli.bits import TORCH_DTYPES, to_bits
from sapp_cli.checkpoint.block_sparse import Mask, gather, kept_blocks, to_matrix
from sapp_cli.checkpoint.block_sparse_file import block_sparse_metadata, block_sparse_out, marker_out
from sapp_cli.checkpoint.dtypes import DTYPES, Bits
from sapp_cli.checkpoint.output_shards import OutputShard, output_shards
from sapp_cli.checkpoint.source import Checkpoint
from sapp_cli.checkpoint.write import ShardOut, TensorOut, write_sharded
from sapp_cli.errors import TrainingError
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.inputs.models import LoadedModel, dense_tensor
from sapp_cli.layers import AttachedLayer

Layout = Literal["both", "dense", "bsr"]


@dataclass(frozen=True)
class PrunedWeight:
    """A pruned weight of the checkpoint: its name there and its blocks."""

    name: str
    layout: MatrixLayout
    grid: BlockGrid
    kept: Mask  # (R, C): anything in the block is nonzero after the cast


class PrunedWeights:
    """The folded state of a run, as the tensors of the checkpoint it came from."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        loaded: LoadedModel,
        state: Mapping[str, Tensor],
        attached: Mapping[str, AttachedLayer],
    ) -> None:
        self._checkpoint = checkpoint
        self._loaded = loaded
        self._state = state
        self._layers = {name: layer for layer in attached.values() for name in layer.layer.names}
        self.pruned = {name: self._pruned(name) for name in self._names() if self._model_name(name) in self._layers}
        self._block_sparse = {
            name: weight
            for name, weight in self.pruned.items()
            if weight.grid.saves(int(weight.kept.sum()), DTYPES[self._dtype(name)].itemsize)
        }

    def masks_sha256(self) -> str:
        """A hash over the names, grids and kept blocks of all pruned weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.pruned.items()):
            digest.update(f"{name} {weight.grid.size} {weight.grid.block}\n".encode())
            digest.update(np.packbits(weight.kept).tobytes())
        return digest.hexdigest()

    def write(self, folder: Path, layout: Layout, max_shard_bytes: int | None) -> list[Path]:
        """The files of the layouts asked for, the block-sparse ones in `sparse/` of the folder."""
        dense = self.write_dense(folder, max_shard_bytes) if layout in ("both", "dense") else []
        sparse = self.write_sparse(folder / "sparse", max_shard_bytes) if layout in ("both", "bsr") else []
        return [*dense, *sparse]

    def write_dense(self, folder: Path, max_shard_bytes: int | None) -> list[Path]:
        """model.safetensors, or the source's shards and their index; zeros in place. The files written."""
        shards = [
            ShardOut(shard.file, [self._dense(name) for name in shard.names], shard.metadata)
            for shard in self._shards(max_shard_bytes)
        ]
        return write_sharded(folder, "model", shards, self._checkpoint.index_metadata)

    def write_sparse(self, folder: Path, max_shard_bytes: int | None) -> list[Path]:
        """The same shards with each pruned weight as its kept blocks (docs/format.md), stored once if it is tied.

        A weight whose block-sparse form would be larger stays dense.
        """
        aliases = {names[0]: names[1:] for names in self._block_sparse_names().values()}
        dropped = {alias for others in aliases.values() for alias in others}
        numbers = {name: number for number, name in enumerate(aliases, 1)} if self._checkpoint.is_hugging_face else {}
        shards = []
        for shard in self._shards(max_shard_bytes):
            tensors: list[TensorOut] = []
            for name in shard.names:
                if name in self._block_sparse and name not in dropped:
                    tensors += self._triple(self._block_sparse[name])
                    if name in numbers:
                        rows = self._block_sparse[name].layout.shape[0]
                        tensors.append(marker_out(name, self._dtype(name), rows, numbers[name]))
                elif name not in dropped:
                    tensors.append(self._dense(name))
            here = {name: self._block_sparse[name] for name in shard.names if name in aliases}
            weights = {name: (weight.layout, weight.grid) for name, weight in here.items()}
            tied = {alias: name for name in here for alias in aliases[name]}
            metadata = {**shard.metadata, **block_sparse_metadata(weights, tied, bool(numbers))}
            shards.append(ShardOut(shard.file, tensors, metadata))
        folder.mkdir(parents=True, exist_ok=True)
        return write_sharded(folder, "model", shards, self._checkpoint.index_metadata)

    def _block_sparse_names(self) -> dict[str, list[str]]:
        """{layer: the checkpoint's names of its weight}, in the checkpoint's order."""
        found: dict[str, list[str]] = {}
        for name in self._block_sparse:
            found.setdefault(self._layers[self._model_name(name)].layer.name, []).append(name)
        return found

    def _names(self) -> Iterator[str]:
        for shard in self._shards(None):
            yield from shard.names

    def _shards(self, max_shard_bytes: int | None) -> list[OutputShard]:
        return output_shards(
            self._checkpoint, max_shard_bytes, lambda name: self._dense(name).nbytes, self._loaded.added
        )

    def _model_name(self, name: str) -> str:
        return self._loaded.names.get(name, name if name in self._loaded.added else "")

    def _dtype(self, name: str) -> str:
        """Storage dtype of a tensor; a weight that the checkpoint lacked gets that of most of the others."""
        if name not in self._loaded.added:
            return self._checkpoint.dtype(name)
        kinds = [self._checkpoint.dtype(known) for known in self._loaded.names]
        return max(sorted(set(kinds)), key=kinds.count)

    def _pruned(self, name: str) -> PrunedWeight:
        masked = self._layers[self._model_name(name)].masked
        matrix = to_matrix(self._bits(name), masked.layout)
        return PrunedWeight(
            name, masked.layout, masked.grid, kept_blocks(matrix, masked.grid, DTYPES[self._dtype(name)])
        )

    def _bits(self, name: str) -> Bits:
        """The tensor as it will be stored; raises TrainingError for a value its dtype cannot hold."""
        tensor = self._state[self._model_name(name)]
        if self._is_as_it_came(name, tensor):
            return self._checkpoint.dense_array(name)
        return to_bits(cast(tensor, self._dtype(name), name))

    def _is_as_it_came(self, name: str, tensor: Tensor) -> bool:
        """True for a tensor that training did not change and that its way through float32 or a cast would.

        Float64 is rounded in float32, and `cast` refuses what is not finite, such as the -inf of a mask.
        """
        if name in self._loaded.added or self._model_name(name) in self._layers or not tensor.is_floating_point():
            return False
        if not DTYPES[self._dtype(name)].wide and bool(tensor.isfinite().all()):
            return False
        source = dense_tensor(self._checkpoint, name)
        here = tensor.detach().to("cpu", torch.float32)
        return here.shape == source.shape and torch.equal(here.view(torch.int32), source.view(torch.int32))

    def _dense(self, name: str) -> TensorOut:
        model_name = self._model_name(name)
        if not model_name:
            shape = self._checkpoint.shape(name)
            return TensorOut(name, self._dtype(name), shape, lambda: self._checkpoint.dense_array(name))
        # The checkpoint knows the shape; asking the state would make the tensor.
        added = name in self._loaded.added
        shape = tuple(self._state[model_name].shape) if added else self._checkpoint.shape(name)
        return TensorOut(name, self._dtype(name), shape, lambda: self._bits(name))

    def _triple(self, weight: PrunedWeight) -> tuple[TensorOut, ...]:
        def values() -> Bits:
            return gather(to_matrix(self._bits(weight.name), weight.layout), weight.grid, weight.kept)

        return block_sparse_out(weight.name, self._dtype(weight.name), weight.grid, weight.kept, values)


def cast(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """The tensor in a storage dtype. Raises TrainingError where a value is not finite, or no longer is after the cast."""
    stored = tensor.detach().to("cpu", TORCH_DTYPES[dtype])
    if stored.is_floating_point() and not bool(torch.isfinite(stored.float()).all()):
        raise TrainingError(
            f"'{name}' holds values that {dtype} cannot: the largest is {float(tensor.detach().abs().max()):g}. "
            "Training diverged: lower optimizer.lr"
        )
    return stored
