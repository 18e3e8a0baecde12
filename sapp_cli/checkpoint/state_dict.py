"""PyTorch state dicts (.pt, .pth, .bin) through the interface of all tensor files; torch is imported only here.

A pickle is a program. These are loaded with `weights_only=True`, which runs none, and never in any other way.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sapp_cli.checkpoint.damage import AGAIN, FETCH, POINTER, absence, damaged
from sapp_cli.checkpoint.tensor_file import FileIdentity, Read, TensorFile, TensorInfo
from sapp_cli.errors import ResourceError

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params")
"""Keys under which training scripts put the state dict beside optimizer and epoch; tried in this order."""


class StateDictFile(TensorFile):
    """A pickled state dict, mapped from disk where its format allows it.

    `.tied` maps an alias to the first name of the same storage; `.ignored` maps every entry that is no tensor to the
    reason. Raises CheckpointError for what is damaged, would run code, or holds no tensors.
    """

    tied: Mapping[str, str]
    ignored: Mapping[str, str]

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.metadata = {}
        before = _identity(self.path)
        entries, self.ignored = _entries(_load(self.path))
        self.identity = before or FileIdentity.of(self.path.stat())
        self.require_unchanged()
        self._tensors: dict[str, torch.Tensor] = {}
        tied: dict[str, str] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name, tensor in entries.items():
            _check(tensor, name, self.path)
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            same = first.setdefault((*place, tensor.dtype), name) if tensor.numel() else name
            if same == name:
                self._tensors[name] = tensor
            else:
                tied[name] = same
        if not self._tensors:
            raise damaged(self.path, "holds no tensors")
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


def _entries(loaded: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(name -> tensor, name -> why it is ignored), out of the wrapper that holds the tensors."""
    import torch

    while isinstance(loaded, Mapping) and not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None or inner is loaded:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        return {}, {}
    tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    others = {
        str(key): f"not a tensor but {type(value).__name__}" for key, value in loaded.items() if key not in tensors
    }
    return tensors, others


def _check(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise CheckpointError for a tensor that is not plain numbers in memory."""
    import torch

    if tensor.is_quantized:
        raise damaged(path, "quantized weights are not supported; start from the unquantized checkpoint", name)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        raise damaged(path, f"is not a dense tensor ({tensor.layout} on {tensor.device})", name)
    if tensor.dtype not in _dtype_names():
        raise damaged(path, f"dtype {tensor.dtype} is not supported", name)
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
