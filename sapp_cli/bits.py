"""Torch tensors as NumPy stores them and back: bf16 and fp8 are unsigned integers of their width there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sapp_cli.checkpoint.dtypes import Bits

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""The names of safetensors."""
if hasattr(torch, "float8_e8m0fnu"):  # from torch 2.7 on
    TORCH_DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

_WITHOUT_NUMPY_TYPE = {
    dtype: torch.int16 if name == "BF16" else torch.uint8
    for name, dtype in TORCH_DTYPES.items()
    if name == "BF16" or name.startswith("F8")
}
"""Floats that NumPy does not know -> the integers of their width that torch and NumPy share."""


def to_bits(tensor: Tensor) -> Bits:
    """The tensor's entries in its storage dtype, on the CPU; shares memory where it can."""
    tensor = tensor.detach().cpu().contiguous()
    integer = _WITHOUT_NUMPY_TYPE.get(tensor.dtype)
    bits: Bits = tensor.numpy() if integer is None else tensor.view(integer).numpy()
    return bits.view(np.uint16) if tensor.dtype == torch.bfloat16 else bits


def from_bits(bits: Bits, dtype: str) -> Tensor:
    """A tensor of its own from entries in the storage dtype of a safetensors `dtype`."""
    own = np.array(bits)  # writable, and in order
    torch_dtype = TORCH_DTYPES[dtype]
    if torch_dtype not in _WITHOUT_NUMPY_TYPE:
        return torch.from_numpy(own)
    return torch.from_numpy(own.view(np.int16) if own.dtype == np.uint16 else own).view(torch_dtype)
