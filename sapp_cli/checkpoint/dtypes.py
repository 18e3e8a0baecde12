"""The dtypes of safetensors: how NumPy stores each, what its bits are worth, which entries count as zero.

NumPy has no bfloat16 and no 8-bit floats: their bits are stored as unsigned integers, here called the storage dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[Any]
"""An array in its storage dtype."""
Float32: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DType:
    """One dtype: its name in files, its storage dtype, and for floats without a NumPy type how the bits are read."""

    name: str
    storage: np.dtype[Any]
    floating: bool = False
    magnitude: int | None = None
    """Of a dtype with a −0: all bits but the sign."""
    float8: tuple[int, int, str] | None = None
    """8-bit floats: (mantissa bits, exponent bias, what the topmost patterns mean)."""

    @property
    def itemsize(self) -> int:
        return int(self.storage.itemsize)

    @property
    def wide(self) -> bool:
        """True if float32 does not hold every value."""
        return self.itemsize > 4 or (self.itemsize == 4 and not self.floating)

    def nonzero(self, bits: Bits) -> npt.NDArray[np.bool_]:
        """True where an entry is nonzero, of the same shape. −0 counts as zero, NaN does not."""
        if self.name == "F8_E8M0":  # a scale: its smallest value is 2^−127
            return np.ones(bits.shape, np.bool_)
        if self.storage.kind == "c":
            return np.not_equal(bits, 0)
        patterns = self.patterns(bits)
        if self.magnitude is not None:
            patterns = patterns & patterns.dtype.type(self.magnitude)
        found: npt.NDArray[np.bool_] = np.not_equal(patterns, 0)
        return found

    def patterns(self, bits: Bits) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The bits as unsigned integers of the dtype's size, a view. Not for complex numbers."""
        unsigned: npt.NDArray[np.unsignedinteger[Any]] = bits.view(f"u{self.itemsize}")
        return unsigned

    def to_float32(self, bits: Bits) -> Float32:
        """The values as float32, of the same shape: exact unless `wide`, then rounded. F32 is returned as it is."""
        assert self.storage.kind != "c", "complex numbers have no float32 value"
        if self.name == "BF16":
            widened: Float32 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
            return widened
        if self.float8 is not None:
            values: Float32 = float8_table(*self.float8)[bits]
            return values
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a float64 beyond float32 becomes inf; a NaN may be signaling
            return bits.astype(np.float32, copy=False)


@lru_cache
def float8_table(mantissa_bits: int, bias: int, top: str) -> Float32:
    """The 256 values of an 8-bit float, (256,).

    `top` says what the largest exponent means: "ieee" (inf and NaN, as E5M2), "fn" (only all ones is NaN, as E4M3),
    "fnuz" (only the pattern of −0 is NaN), "scale" (E8M0: no sign, no mantissa, no zero; all ones is NaN).
    """
    codes = np.arange(256)
    if top == "scale":
        values = np.ldexp(np.ones(256), codes - bias)
        values[255] = np.nan
        return values.astype(np.float32)
    sign, body = np.where(codes >> 7, -1.0, 1.0), codes & 0x7F
    exponent, mantissa = body >> mantissa_bits, body & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = sign * np.where(
        exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, np.maximum(exponent, 1) - bias)
    )
    if top == "ieee":
        largest = exponent == 0x7F >> mantissa_bits
        values[largest] = np.where(mantissa == 0, sign * np.inf, np.nan)[largest]
    elif top == "fn":
        values[body == 0x7F] = np.nan
    else:
        values[0x80] = np.nan
    return values.astype(np.float32)


def _table() -> dict[str, DType]:
    integers = {
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
    }
    floats = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
    found = [DType(name, np.dtype(code)) for name, code in integers.items()]
    found += [DType("BOOL", np.dtype(np.bool_)), DType("C64", np.dtype("<c8"))]
    for name, code in floats.items():
        storage = np.dtype(code)
        found.append(DType(name, storage, True, magnitude=2 ** (8 * storage.itemsize - 1) - 1))
    byte = np.dtype("u1")
    found += [
        DType("F8_E4M3", byte, True, 0x7F, (3, 7, "fn")),
        DType("F8_E5M2", byte, True, 0x7F, (2, 15, "ieee")),
        DType("F8_E4M3FNUZ", byte, True, None, (3, 8, "fnuz")),
        DType("F8_E5M2FNUZ", byte, True, None, (2, 16, "fnuz")),
        DType("F8_E8M0", byte, True, None, (0, 127, "scale")),
    ]
    return {dtype.name: dtype for dtype in found}


DTYPES = _table()
PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Dtypes of the format whose entries are smaller than a byte: quantized weights, refused."""
