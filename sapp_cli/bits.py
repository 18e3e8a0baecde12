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
}
"""The names of safetensors."""

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

_WITHOUT_NUMPY_TYPE = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
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
