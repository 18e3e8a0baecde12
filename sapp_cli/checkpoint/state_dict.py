"""PyTorch state dicts (.pt, .pth, .bin) through the interface of all tensor files; torch is imported only here.

A pickle is a program. These are loaded with `weights_only=True`, which runs none, and never in any other way.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.damage import AGAIN, FETCH, POINTER, absence, damaged
from sapp_cli.checkpoint.foreign import of_another_format
from sapp_cli.checkpoint.nested import choose_state_dict, keys_of
from sapp_cli.checkpoint.tensor_file import FileIdentity, Read, TensorFile, TensorInfo
from sapp_cli.errors import ResourceError

if TYPE_CHECKING:
    import torch


DENSE = ("tensor.to_dense()", "load the model onto a device first")
"""What makes a tensor dense: a sparse one, one without data."""


class StateDictFile(TensorFile):
    """A pickled state dict, mapped from disk where its format allows it.

    `.tied` maps an alias to the first name of the same storage. Raises CheckpointError for a file that is damaged, would
    run code, or holds no state dict.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.metadata = {}
        before = _identity(self.path)
        loaded = _load(self.path)
        self.identity = before or FileIdentity.of(self.path.stat())
        self.require_unchanged()
        import torch

        choice = choose_state_dict(loaded, torch.Tensor)
        if choice is None:
            advice = "save model.state_dict() alone: torch.save(model.state_dict(), 'weights.pt')"
            raise damaged(self.path, f"holds no state dict, but {keys_of(loaded)}; {advice}")
        self.note = choice.note(str(self.path))
        self.ignored = {key: f"not a tensor but {kind}" for key, kind in choice.chosen.others.items()}
        self._tensors: dict[str, torch.Tensor] = {}
        tied: dict[str, str] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, tensor in choice.chosen.tensors.items():
            _check(tensor, name, self.path)
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            same = first.setdefault((*place, tensor.dtype), name) if tensor.numel() else name
            if same == name:
                self._tensors[name] = tensor
            else:
                tied[name] = same
        self.tied = tied
        self.tensors = {
            name: TensorInfo(name, _dtype_names()[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in self._tensors.items()
        }

    @contextmanager
    def reading(self, name: str) -> Iterator[Read]:
        import torch

        info = self.info(name)
        self.require_unchanged()  # a mapped file that became shorter ends the process: SIGBUS
        try:
            tensor = self._tensors[name].detach().resolve_conj().resolve_neg().contiguous()
        except RuntimeError:
            raise ResourceError(f"{self.path}: '{name}': {info.nbytes:,} bytes do not fit into memory") from None
        flat = tensor.reshape(-1).view(torch.uint8).numpy()

        def read(offset: int, buffer: npt.NDArray[np.uint8]) -> None:
            self.require_unchanged()
            buffer[:] = flat[offset : offset + buffer.nbytes]

        yield read


def _identity(path: Path) -> FileIdentity | None:
    """None for a file that is not there, which `_load` says."""
    with suppress(OSError):
        return FileIdentity.of(path.stat())
    return None


def _load(path: Path) -> Any:
    """Whatever the pickle holds, with no code of it run."""
    try:
        import torch
    except ImportError:
        raise damaged(path, "a PyTorch state dict is read with torch, which is not installed") from None
    if not path.is_file():
        raise damaged(path, absence(path))
    with suppress(OSError), path.open("rb") as file:  # what cannot be read is told below
        if file.read(len(POINTER)) == POINTER:
            raise damaged(path, FETCH)
    foreign = of_another_format(path, content=True)
    if foreign is not None:
        raise foreign
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about the age of the file
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        if not re.search("Unsupported (global|class)", str(error)):
            raise damaged(path, f"is damaged, or no PyTorch file; {AGAIN}") from None
        advice = (
            "refused: it holds more than tensors, and reading that would run code. If you trust it, load it where it "
            "was made and save model.state_dict() there, with torch.save or safetensors.torch.save_file"
        )
        raise damaged(path, advice) from None
    except MemoryError:
        raise ResourceError(f"{path}: does not fit into memory") from None
    except Exception as error:  # a damaged file makes the unpickler fail in any way there is
        if re.search("(can't|cannot) allocate memory", str(error), re.IGNORECASE):
            raise ResourceError(f"{path}: does not fit into memory") from None
        raise damaged(path, f"is damaged, or no PyTorch file ({type(error).__name__}); {AGAIN}") from None


def _check(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise CheckpointError for a tensor that is not plain numbers in memory."""
    import torch

    if tensor.is_quantized:
        raise damaged(path, "quantized weights are not supported; start from the unquantized checkpoint", name)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        kind = "is without data" if tensor.is_meta else f"is a sparse or nested tensor ({tensor.layout})"
        raise damaged(path, f"{kind}; save a dense one: {DENSE[tensor.is_meta]}", name)
    if tensor.dtype not in _dtype_names():
        raise damaged(path, f"dtype {tensor.dtype} is not supported; save it as another one, or leave it out", name)
    if tensor.nbytes > tensor.untyped_storage().nbytes():  # a stride of 0 makes terabytes of one number
        raise damaged(path, "repeats one stored number over many entries; save a contiguous copy", name)


@lru_cache
def _dtype_names() -> dict[torch.dtype, str]:
    """torch.dtype -> its name in safetensors."""
    import torch

    names = {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
        "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
        "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    }  # fmt: skip
    return {getattr(torch, theirs): ours for ours, theirs in names.items() if hasattr(torch, theirs)}
