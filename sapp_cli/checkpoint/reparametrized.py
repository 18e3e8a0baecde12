"""Weights that a file stores as the parts from which torch computes them.

NAME_orig and NAME_mask of torch.nn.utils.prune are read as their product NAME, as `prune.remove` would save it. The parts
of weight_norm, spectral_norm and other parametrizations stay as they are: `parts_of_weights` names them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.damage import damaged, quoted
from sapp_cli.checkpoint.tensor_file import Read, TensorFile, TensorInfo

MOST_NAMES = 3


@dataclass(frozen=True)
class Parts:
    """A weight that is computed from other tensors."""

    name: str
    tensors: tuple[str, ...]
    made_by: str
    remedy: str  # the call that makes it a plain weight


def parts_of_weights(names: Collection[str]) -> list[Parts]:
    """The weights that are stored as parts of a parametrization of torch, masks of torch.nn.utils.prune excepted."""
    known, found = set(names), []
    for name in names:
        head, _, last = name.rpartition(".")
        above, _, attribute = head.rpartition(".")
        weight = name.removesuffix("_v").removesuffix("_orig")
        call = "torch.nn.utils.parametrize.remove_parametrizations(module, '" + attribute + "')"
        if name.endswith("_v") and f"{weight}_g" in known:
            found.append(
                Parts(weight, (f"{weight}_g", name), "weight_norm", "torch.nn.utils.remove_weight_norm(module)")
            )
        elif name.endswith("_orig") and f"{weight}_u" in known:
            made = "torch.nn.utils.remove_spectral_norm(module)"
            found.append(Parts(weight, (name, f"{weight}_u"), "spectral_norm", made))
        elif above.rpartition(".")[2] == "parametrizations" and last in ("original", "original1"):
            weight = f"{above.removesuffix('parametrizations')}{attribute}"
            first = (f"{head}.original0",) if last == "original1" else ()
            found.append(Parts(weight, (*first, name), "a parametrization", call))
    return found


def with_masks_applied(files: list[TensorFile]) -> tuple[list[TensorFile], str | None]:
    """The files with each NAME_orig and NAME_mask of torch.nn.utils.prune as one tensor NAME, and a line that says so."""
    place = {name: file for file in files for name in file.tensors}
    alias = {other: name for file in files for other, name in file.tied.items()}
    names = {*place, *alias}
    masked = {
        name: f"{name.removesuffix('_orig')}_mask"
        for name in names
        if name.endswith("_orig") and name.removesuffix("_orig") not in names and _is_masked(name, place, alias)
    }
    # A tied weight has one mask; with several, or one name without any, it is not one weight, and stays as it is.
    for other, name in alias.items():
        if (other in masked) != (name in masked) or alias.get(masked.get(other, "")) != masked.get(name):
            masked.pop(other, None)
            masked.pop(name, None)
    if not masked:
        return files, None
    masks = {mask: place[alias.get(mask, mask)] for mask in masked.values()}
    shown = sorted(name.removesuffix("_orig") for name in masked)
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    first = shown[0]
    note = (
        f"{', '.join(map(quoted, shown[:MOST_NAMES]))}{more}: masked by torch.nn.utils.prune; reads the product "
        f"of {quoted(f'{first}_orig')} and {quoted(f'{first}_mask')}, as torch.nn.utils.prune.remove saves it"
    )
    return [_MaskedFile(file, masked, masks, alias) for file in files], note


def _is_masked(name: str, place: Mapping[str, TensorFile], alias: Mapping[str, str]) -> bool:
    mask = f"{name.removesuffix('_orig')}_mask"
    stored, mask = alias.get(name, name), alias.get(mask, mask)
    if mask not in place:
        return False
    weight, about = place[stored].info(stored), place[mask].info(mask)
    return weight.kind.floating and weight.shape == about.shape and about.kind.storage.kind != "c"


class _MaskedFile(TensorFile):
    """A file in which NAME stands for the product of NAME_orig and NAME_mask, wherever the mask lies."""

    def __init__(
        self, file: TensorFile, masked: Mapping[str, str], masks: Mapping[str, TensorFile], alias: Mapping[str, str]
    ) -> None:
        self.path, self.identity, self.metadata = file.path, file.identity, file.metadata
        self.ignored, self.note = file.ignored, file.note
        self._file, self._masked, self._masks, self._alias = file, masked, masks, alias
        infos = [self._renamed(info) for name, info in file.tensors.items() if name not in masks]
        self.tensors = {info.name: info for info in infos}
        self.tied = {self._name(other): self._name(name) for other, name in file.tied.items() if other not in masks}

    def _name(self, stored: str) -> str:
        return stored.removesuffix("_orig") if stored in self._masked else stored

    def _renamed(self, info: TensorInfo) -> TensorInfo:
        return replace(info, name=self._name(info.name))

    def require_unchanged(self, status: os.stat_result | None = None, sha256: str | None = None) -> None:
        self._file.require_unchanged(status, sha256)

    @contextmanager
    def reading(self, name: str) -> Iterator[Read]:
        original = f"{name}_orig"
        if name not in self.tensors or original not in self._masked:
            with self._file.reading(name) as read:
                yield read
            return
        mask = self._masked[original]
        file, stored = self._masks[mask], self._alias.get(mask, mask)
        kind, itemsize = file.info(stored).kind, self.info(name).kind.itemsize
        with self._file.reading(original) as read_original, file.reading(stored) as read_mask:

            def read_product(offset: int, buffer: npt.NDArray[np.uint8]) -> None:
                assert offset % itemsize == buffer.nbytes % itemsize == 0, f"{name}: half an entry was asked for"
                read_original(offset, buffer)
                part = np.empty(buffer.nbytes // itemsize * kind.itemsize, np.uint8)
                read_mask(offset // itemsize * kind.itemsize, part)
                kept = kind.to_float32(part.view(kind.storage))
                if not bool(np.isin(kept, (0, 1)).all()):
                    raise damaged(file.path, "is not a mask: it has other values than 0 and 1", stored)
                buffer.reshape(-1, itemsize)[kept == 0] = 0

            yield read_product
