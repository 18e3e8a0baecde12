"""docs/format.md keeps its word: its reader runs as it stands there, and it tells the format as it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from sapp_cli.checkpoint.block_sparse import gather, kept_blocks
from sapp_cli.checkpoint.block_sparse_file import (
    SUFFIXES,
    VERSION,
    WITH_MARKERS,
    block_sparse_metadata,
    block_sparse_out,
    marker_out,
)
from sapp_cli.checkpoint.dtypes import DTYPES
from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.write import write_safetensors
from sapp_cli.grid import BlockGrid, MatrixLayout
from tests.checkpoint.files import frame, save_block_sparse, save_floats
from tests.checkpoint.test_block_sparse import weights

DOC = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
(READER,) = re.findall(r"^```python\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def read() -> Callable[[Path], dict[str, np.ndarray]]:
    names: dict[str, Any] = {}
    exec(compile(READER, "docs/format.md", "exec"), names)
    return names["read"]  # type: ignore[no-any-return]


def test_the_reader_has_at_most_40_lines() -> None:
    assert sum(bool(line.strip()) for line in READER.splitlines()) <= 40
    assert max(map(len, READER.splitlines())) <= 120


@settings(deadline=None, max_examples=60)
@given(weights())
def test_the_reader_reads_what_sapp_writes(
    tmp_path_factory: pytest.TempPathFactory,
    read: Callable[[Path], dict[str, np.ndarray]],
    weight: tuple[np.ndarray, str, MatrixLayout, BlockGrid],
) -> None:
    array, dtype, layout, grid = weight
    path = save_block_sparse(
        tmp_path_factory.getbasetemp() / "doc.safetensors", "w", dtype, array, layout, grid, tied="w"
    )
    found, expected = read(path), open_checkpoint(path).dense_array("w")
    assert set(found) == {"w", "tied"}
    assert found["w"].shape == found["tied"].shape == layout.shape
    assert found["w"].dtype.itemsize == expected.dtype.itemsize
    assert found["w"].tobytes() == expected.tobytes()


def test_the_reader_skips_markers(tmp_path: Path, read: Callable[[Path], dict[str, np.ndarray]]) -> None:
    layout, grid, weight = MatrixLayout("linear", (4, 4)), BlockGrid((4, 4), (2, 2)), np.eye(4, dtype=np.float32)
    kept = kept_blocks(weight, grid, DTYPES["F32"])
    outs = block_sparse_out("w", "F32", grid, kept, lambda: gather(weight, grid, kept))
    about = block_sparse_metadata({"w": (layout, grid), "elsewhere": (layout, grid)}, {}, marked=True)
    write_safetensors(tmp_path / "x.safetensors", [*outs, marker_out("w", "F32", 4, 7)], about)
    found = read(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {"w": weight.tolist()}


def test_the_reader_reads_plain_files_and_refuses_others(
    tmp_path: Path, read: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    path = save_floats(tmp_path / "x.safetensors", a=[[1, 2]], b=3)
    assert {name: array.tolist() for name, array in read(path).items()} == {"a": [[1, 2]], "b": 3}
    path.write_bytes(frame({"__metadata__": {"sapp_bsr_version": "3"}}))
    with pytest.raises(ValueError, match="block-sparse format of another version"):
        read(path)
    layout = MatrixLayout("linear", (4, 4))
    save_block_sparse(path, "w", "F32", np.ones((4, 4), np.float32), layout, BlockGrid((4, 4), (2, 2)))
    content = path.read_bytes()
    col = open_checkpoint(path).tensors["w.bsr_col_indices"]
    for indices in ([0, 1, 0, 2], [0, 1, -1, 1], [1, 0, 0, 1], [0, 0, 0, 1]):
        path.write_bytes(content[: col.start] + np.array(indices, "<i4").tobytes() + content[col.end :])
        with pytest.raises(ValueError, match="indices out of order or out of range"):
            read(path)


def test_the_tables_of_dtypes_and_suffixes_are_those_of_the_code() -> None:
    assert all(f"`NAME{suffix}`" in DOC for suffix in SUFFIXES)
    assert DOC.startswith(f"# The block-sparse file, versions {VERSION} and {WITH_MARKERS}\n")
