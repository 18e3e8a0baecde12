"""What the CUDA kernel is compiled to for cards that are not here: tensor cores, 16-byte copies, no spilled registers."""

import re
import subprocess

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, compile

from sapp_cli.grid import BlockGrid
from sapp_cli.runtime.triton_kernel import block_sparse_product
from sapp_cli.runtime.triton_product import TritonProduct, TritonWeight
from sapp_cli.runtime.triton_tiles import LEAST_SIDE, Tile, tiles

AMPERE, HOPPER = 80, 90
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
SHARED_MEMORY = {AMPERE: 99 << 10, HOPPER: 227 << 10}
"""Bytes that a program may have; for AMPERE those of the cards with the least."""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(card, tile, block, dtype, precision="ieee", in_features=4096):
    """The kernel as a layer of many blocks would have it compiled: pointers and sizes are multiples of 16."""
    grid = BlockGrid((4096, in_features), block)
    weight = TritonWeight.of(torch.zeros(0, *block, dtype=dtype), torch.zeros(1), torch.zeros(0), None, grid)
    constants = {**TritonProduct(weight, tile)._constants, "WIDEN": False, "PRECISION": precision}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    arguments = block_sparse_product.arg_names
    matrix, index = f"*{NAMES[dtype]}", "*i32"
    types = dict(zip(arguments, [matrix, matrix, index, index, index, "*fp32", matrix, *["i32"] * 5], strict=False))
    types |= dict.fromkeys(constants, "constexpr")
    aligned = [name for name in types if name not in ("rows", "block_rows", *constants)]
    source = ASTSource(
        block_sparse_product,
        types,
        {(arguments.index(name),): value for name, value in constants.items()},
        {(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return compile(source, target=GPUTarget("cuda", card, 32), options=options)


def spilled(kernel, card, folder):
    """Bytes that the assembler could not keep in registers."""
    (folder / "kernel.ptx").write_text(kernel.asm["ptx"])
    name = f"sm_{card}{'a' if card == HOPPER else ''}"
    command = [get_ptxas(card).path, "-v", f"--gpu-name={name}", str(folder / "kernel.ptx"), "-o", "/dev/null"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"(\d+) bytes spill stores", ran.stderr).group(1))


@pytest.mark.parametrize(
    ("card", "block", "dtype", "rows", "product"),
    [
        (AMPERE, (16, 16), torch.float16, 16, "mma.sync"),
        (AMPERE, (128, 128), torch.bfloat16, 4096, "mma.sync"),  # the tile with the most sums
        (AMPERE, (64, 64), torch.float32, 256, "fma.rn.f32"),
        (HOPPER, (8, 8), torch.bfloat16, 4096, "wgmma.mma_async"),
    ],
    ids=str,
)
def test_tiles_are_computed_as_they_should(card, block, dtype, rows, product, tmp_path):
    tile = tiles(rows, block, dtype)[1]
    kernel = compiled(card, tile, block, dtype)
    code = kernel.asm["ptx"]
    assert product in code
    assert re.search(r"cp\.async\.c[ga]\.shared\.global.*0x10", code), "x and weights are copied 16 bytes at a time"
    assert kernel.metadata.shared <= SHARED_MEMORY[card]
    assert spilled(kernel, card, tmp_path) == 0


def test_a_block_of_four_columns_is_copied_eight_bytes_at_a_time():
    code = compiled(AMPERE, Tile(32, 16, 64, 4, 5), (4, 4), torch.float16).asm["ptx"]
    assert re.search(r"cp\.async\.ca\.shared\.global.*0x8", code)


def test_float32_is_not_multiplied_as_tf32_unless_asked_for():
    tile = Tile(32, 32, 32, 4, 3)
    exact, short = (compiled(AMPERE, tile, (32, 32), torch.float32, wanted) for wanted in ("ieee", "tf32"))
    assert "tf32" not in exact.asm["ptx"]
    assert ".tf32.tf32" in short.asm["ptx"]


def test_odd_blocks_and_ragged_edges_compile():
    kernel = compiled(AMPERE, Tile(16, 16, 64, 2, 7), (7, 5), torch.float16, in_features=4099)
    assert "mma.sync" in kernel.asm["ptx"]


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("height", [1, 8, 16, 24, 64, 500])
@pytest.mark.parametrize("rows", [1, 16, 64, 256, 16384])
def test_a_few_different_tiles_are_tried(rows, height, dtype):
    found = tiles(rows, (height, 16), dtype)
    names = [tile.name for tile in found]
    assert 3 <= len(set(names)) == len(names) <= 4
    for tile in found:
        sides = tile.rows, tile.outputs, tile.columns
        assert all(side >= LEAST_SIDE and side & (side - 1) == 0 for side in sides)
        assert tile.outputs < max(2 * height, 2 * LEAST_SIDE)  # less than half of it idle, where blocks are high enough
        assert tile.rows <= max(16, rows)


def test_a_tile_says_what_it_is():
    assert tiles(256, (64, 64), torch.bfloat16)[2].name == "triton-64x64x64-4w-5s"
