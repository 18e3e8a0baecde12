"""Reading safetensors: what is sound is read as the safetensors library reads it, what is not names file and tensor."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from sapp_cli.checkpoint.safetensors import SafetensorsFile
from sapp_cli.errors import CheckpointError
from tests.checkpoint.files import entry, frame, save_floats

AGAIN = "; download or copy the file again"
NOT_ONE = "is not a safetensors file: "
EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
ONE = entry("U8", [1], 0, 1)
TWO = entry("U8", [1], 1, 2)


def refusal(path: Path) -> str:
    """What opening the file is refused with, behind its path."""
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "half": torch.tensor([1.5, -2.0, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([[1.0, -3.0], [0.0, 256.0]], dtype=torch.bfloat16),
        "whole": torch.tensor([-1, 2**40]),
        "one": torch.tensor(7.0),
        "none": torch.zeros(0, 3),
        "small": torch.tensor([1.0, -0.5]).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(file.float32(name), tensor.float().numpy())
        assert file.raw(name).tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert file.array("brain").tolist() == [[0x3F80, 0xC040], [0, 0x4380]]
    assert file.array("one").shape == ()
    assert file.array("whole").tolist() == [-1, 2**40]


def test_offsets_are_those_in_the_file_and_the_order_is_the_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(frame({"later": TWO, "__metadata__": {"k": "v"}, "sooner": ONE}, b"\x05\x06"))
    file = SafetensorsFile(path)
    assert list(file.tensors) == ["later", "sooner"]
    info = file.tensors["later"]
    assert path.read_bytes()[info.start : info.end] == b"\x06"
    assert (info.dtype, info.shape, info.nbytes, info.size) == ("U8", (1,), 1, 1)


def test_slabs_are_whole_rows_in_one_buffer(tmp_path: Path) -> None:
    rows = np.arange(15.0).reshape(5, 3)
    file = SafetensorsFile(save_floats(tmp_path / "x.safetensors", x=rows, empty=np.zeros((4, 0)), scalar=3.0))
    seen = [(first, slab.copy(), slab.ctypes.data) for first, slab in file.slabs("x", 24)]
    assert [first for first, _, _ in seen] == [0, 2, 4]
    assert np.concatenate([slab for _, slab, _ in seen]).tolist() == rows.tolist()
    assert len({address for _, _, address in seen}) == 1
    assert [slab.shape for _, slab in file.slabs("x", 1)] == [(1, 3)] * 5
    assert list(file.slabs("empty", 100)) == []
    assert [slab.tolist() for _, slab in file.slabs("scalar", 100)] == [[3.0]]


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    path = save_floats(tmp_path / "x.safetensors", x=[1.0])
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path).array("y")
    assert str(caught.value) == f"{path}: 'y': no such tensor in this file"


def test_complex_numbers_have_no_float32(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(frame({"c": entry("C64", [1], 0, 8)}, struct.pack("<ff", 1, 2)))
    file = SafetensorsFile(path)
    assert file.array("c").tolist() == [1 + 2j]
    with pytest.raises(CheckpointError, match=r"'c': complex numbers \(C64\) are not supported"):
        file.float32("c")


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = save_floats(tmp_path / "x.safetensors", x=np.ones(100))
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError) as caught:
        file.array("x")
    assert str(caught.value) == (
        f"{path}: became shorter since it was opened; put the first file back, or run the command again"
    )
    path.unlink()
    with pytest.raises(CheckpointError, match=r"'x': cannot be read: No such file or directory"):
        file.array("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NOT_ONE + "it has 0 bytes" + AGAIN),
        (b"1234567", NOT_ONE + "it has 7 bytes" + AGAIN),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder",
        ),
        (
            frame(b"{}", length=2**63),
            NOT_ONE + "a header of 9,223,372,036,854,775,808 bytes, more than the format allows" + AGAIN,
        ),
        (frame(b"{}", length=100), "truncated: the header has 100 bytes, the file 10" + AGAIN),
        (frame(b""), NOT_ONE + "its header does not begin with '{'" + AGAIN),
        (frame(b"[]"), NOT_ONE + "its header does not begin with '{'" + AGAIN),
        (frame(b"{"), "the header is not JSON: Expecting property name enclosed in double quotes (character 1)" + AGAIN),
        (frame(b'{"\xff":0}'), "the header is not UTF-8 (byte 2)" + AGAIN),
        (frame(b'{"a":' + b"[" * 100_000), "the header is nested too deeply to be read"),
        (frame(b'{"a":' + b"[" * 80 + b"]" * 80 + b"}"), "the header is nested more than 64 deep"),
        (frame(b'{"a":' + b"9" * 5000 + b"}"), "the header has a number of too many digits"),
        (frame(b'{"\\ud800":' + EMPTY + b"}"), "the header has half a character (a lone surrogate) in a text"),
        (frame(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}"), "the header has 'a' twice"),
        (frame({}, b"x"), "1 bytes at the end of the file belong to no tensor" + AGAIN),
        (frame({"__metadata__": {"a": 1}}), "__metadata__ in the header is not an object of texts"),
        (frame({"__metadata__": []}), "__metadata__ in the header is not an object of texts"),
    ],
)  # fmt: skip
def test_damaged_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path) == message


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (7, "its entry in the header is not {dtype, shape, data_offsets}"),
        ({**ONE, "more": 1}, "its entry in the header is not {dtype, shape, data_offsets}"),
        ({"dtype": "U8", "shape": [1]}, "its entry in the header is not {dtype, shape, data_offsets}"),
        (entry("F9", [1], 0, 1), "unknown dtype 'F9'"),
        (entry([], [1], 0, 1), "unknown dtype []"),  # type: ignore[arg-type]
        (entry("F4", [2], 0, 1), "quantized weights (F4) are not supported; start from the unquantized checkpoint"),
        (entry("U8", [-1], 0, 1), "its shape is not a list of at most 32 natural numbers"),
        (entry("U8", [1.0], 0, 1), "its shape is not a list of at most 32 natural numbers"),
        (entry("U8", [True], 0, 1), "its shape is not a list of at most 32 natural numbers"),
        (entry("U8", [2**64], 0, 1), "its shape is not a list of at most 32 natural numbers"),
        (entry("U8", [1] * 33, 0, 1), "its shape is not a list of at most 32 natural numbers"),
        (entry("U8", "1", 0, 1), "its shape is not a list of at most 32 natural numbers"),  # type: ignore[arg-type]
        (entry("U8", [1], -1, 0), "its data_offsets are not a start and an end"),
        (entry("U8", [1], 1, 0), "its data_offsets are not a start and an end"),
        ({**ONE, "data_offsets": [0, 1, 2]}, "its data_offsets are not a start and an end"),
        (entry("U8", [2], 0, 1), "(2,) of U8 needs 2 bytes, its data_offsets span 1"),
        (entry("F32", [1], 0, 1), "(1,) of F32 needs 4 bytes, its data_offsets span 1"),
        (entry("F32", [2**40, 2**40], 0, 0), "its shape (1099511627776, 1099511627776) is larger than any file"),
        # 2**32 · 2**32 is 0 in 64 bits, and NumPy refuses an empty array of such a shape
        (entry("U8", [2**32, 2**32], 0, 0), "its shape (4294967296, 4294967296) is larger than any file"),
        (entry("U8", [0, 2**62, 2**62], 0, 0), f"its shape (0, {2**62}, {2**62}) is larger than any file"),
        (entry("U8", [2], 0, 2), "truncated: it ends 1 bytes behind the end of the file" + AGAIN),
        (entry("U8", [1], 2**62, 2**62 + 1),
         f"truncated: it ends {2**62:,} bytes behind the end of the file" + AGAIN),
    ],
)  # fmt: skip
def test_a_damaged_entry(tmp_path: Path, about: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(frame({"layer.weight": about}, b"\0"))
    assert refusal(path) == f"'layer.weight': {message}"


def test_overlaps_and_holes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(frame({"a": entry("U8", [2], 0, 2), "b": TWO}, b"\0\0"))
    assert refusal(path) == "'b': overlaps the tensor before it in the file"
    path.write_bytes(frame({"a": ONE, "b": ONE}, b"\0"))
    assert refusal(path) == "'b': overlaps the tensor before it in the file"
    path.write_bytes(frame({"a": ONE, "b": entry("U8", [1], 2, 3)}, b"\0\0\0"))
    assert refusal(path) == "'b': leaves a hole before it in the file"
    path.write_bytes(frame({"a": TWO}, b"\0\0"))
    assert refusal(path) == "'a': leaves a hole before it in the file"


def test_names_are_printed_escaped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(frame({"\x1b[31mred\n": 7}))
    assert refusal(path).startswith("'\\x1b[31mred\\n': its entry")
    path.write_bytes(frame({"x" * 10_000: 7}))
    assert refusal(path).startswith(f"'{'x' * 57}...{'x' * 57}': its entry")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.safetensors") == "no such file"
    assert refusal(tmp_path) == "is not a regular file"
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert refusal(tmp_path / "pipe.safetensors") == "is not a regular file"
