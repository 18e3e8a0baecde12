from __future__ import annotations

import numpy as np
import pytest
import torch

from sapp_cli.checkpoint.dtypes import DTYPES

TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@pytest.mark.parametrize("name", TORCH)
def test_every_pattern_of_a_small_float_means_what_torch_says(name: str) -> None:
    kind = DTYPES[name]
    patterns = np.arange(256**kind.itemsize).astype(f"u{kind.itemsize}")
    expected = torch.from_numpy(patterns).view(TORCH[name]).float().numpy()
    bits = patterns.view(kind.storage)
    np.testing.assert_array_equal(kind.to_float32(bits), expected)
    np.testing.assert_array_equal(kind.nonzero(bits), expected != 0)


@pytest.mark.parametrize(
    ("name", "values", "nonzero"),
    [
        ("F32", [0.0, -0.0, 1e-45, np.nan, -np.inf], [False, False, True, True, True]),
        ("F64", [0.0, -0.0, 5e-324, np.nan, -np.inf], [False, False, True, True, True]),
        ("I8", [0, -128, 127, 1, -1], [False, True, True, True, True]),
        ("I64", [0, -(2**63), 2**63 - 1, 1, -1], [False, True, True, True, True]),
        ("BOOL", [False, True, False, True, True], [False, True, False, True, True]),
        ("C64", [0, -0.0, 1j, 1, complex(np.nan, 0)], [False, False, True, True, True]),
    ],
)
def test_zero_is_zero_whatever_its_sign(name: str, values: list[float], nonzero: list[bool]) -> None:
    kind = DTYPES[name]
    assert kind.nonzero(np.array(values, kind.storage)).tolist() == nonzero


def test_what_float32_cannot_hold_is_wide_and_rounded() -> None:
    assert [name for name, kind in DTYPES.items() if kind.wide] == ["U32", "I32", "U64", "I64", "C64", "F64"]
    assert DTYPES["I32"].to_float32(np.array([2**24 + 1], np.int32)).tolist() == [2.0**24]
    assert DTYPES["F64"].to_float32(np.array([1e300, -1e300])).tolist() == [np.inf, -np.inf]
