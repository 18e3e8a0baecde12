"""What the generator makes: code for machines that are not this one, in shapes that fit their registers."""

from dataclasses import replace

import pytest

from sapp_cli.codegen.isa import AVX2, AVX512, AVX512_BF16, NEON
from sapp_cli.codegen.machine_code import optimize
from sapp_cli.runtime.driver import generate
from sapp_cli.runtime.kernel_shape import kernel_shape


@pytest.mark.parametrize(
    ("isa", "block", "height", "lanes", "tile_rows"),
    [
        (AVX512, (8, 8), 8, 8, 12),  # half a register, but no lane of it idle, for a few rows of x
        (AVX512, (16, 16), 16, 16, 12),
        (AVX512, (32, 32), 32, 16, 12),
        (AVX512, (64, 64), 64, 16, 6),  # 6·4 sums, 4 weights, 1 x: 29 of 32 registers
        (AVX512, (128, 64), 64, 16, 6),  # as two blocks, one above the other
        (AVX512, (80, 16), 16, 16, 12),
        (AVX512, (12, 16), 12, 16, 12),  # four lanes idle
        (AVX2, (16, 16), 16, 8, 6),  # 6·2 sums, 2 weights, 1 x: 15 of 16 registers
        (AVX2, (32, 32), 16, 8, 6),
        (NEON, (16, 16), 16, 4, 6),
    ],
)
def test_blocks_are_cut_to_fit_the_registers(isa, block, height, lanes, tile_rows):
    shape = kernel_shape(isa, block, bf16=False)
    assert (shape.height, shape.lanes, shape.tile_rows) == (height, lanes, tile_rows)
    assert shape.vectors * (shape.tile_rows + 1) + 1 <= isa.registers


@pytest.mark.parametrize(
    ("isa", "block", "height", "row_vectors"),
    [
        (AVX512, (8, 8), 8, 3),  # 8·3 sums
        (AVX512, (4, 4), 4, 3),
        (AVX512, (24, 8), 12, 2),  # as two blocks of 12·2 sums
        (AVX512, (7, 5), 7, 3),
        (AVX512, (16, 16), 16, 0),  # whole registers of outputs
        (AVX512, (32, 16), 32, 0),
        (AVX512, (40, 8), 10, 2),
        (AVX2, (8, 8), 8, 0),  # whole registers here
        (AVX2, (4, 4), 4, 0),  # too few registers for both
        (NEON, (4, 4), 4, 0),
    ],
)
def test_blocks_that_fill_no_register_are_multiplied_by_vectors_of_rows(isa, block, height, row_vectors):
    shape = kernel_shape(isa, block, bf16=False)
    assert (shape.height, shape.row_vectors) == (height, row_vectors)
    assert (shape.height + 1) * shape.row_vectors + 1 <= isa.registers


@pytest.mark.parametrize(
    ("isa", "block", "row_vectors", "row_height"),
    [
        (AVX512, (16, 16), (0, 3), 8),  # with short block rows, with long ones
        (AVX512, (16, 32), (0, 3), 8),
        (AVX512, (32, 32), (0, 0), 0),
        (AVX512, (8, 8), (3, 3), 8),
        (AVX2, (8, 8), (0, 0), 0),
    ],
)
def test_long_block_rows_of_one_vector_are_multiplied_by_vectors_of_rows(isa, block, row_vectors, row_height):
    shapes = [kernel_shape(isa, block, bf16=False, long_rows=long) for long in (False, True)]
    assert tuple(shape.row_vectors for shape in shapes) == row_vectors
    assert shapes[1].row_height == row_height
    assert {shape.height for shape in shapes} == {block[0]}  # stored in one way


@pytest.mark.parametrize(
    ("block", "bf16", "group"), [((8, 8), False, 2), ((16, 16), False, 1), ((8, 8), True, 4)], ids=str
)
def test_block_rows_that_are_long_are_written_four_cache_lines_at_a_time(block, bf16, group):
    short, long = (kernel_shape(AVX512, block, bf16=bf16, long_rows=long) for long in (False, True))
    assert long.group == 4 * group  # times the outputs of a block, times their bytes: 256
    assert long.slots * long.slot_width * long.arithmetic.stored_bytes == 256
    assert short.row_vectors == 0 or short.group == group


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_neon_code_is_made_and_verified(bf16):
    machine, module = optimize(generate(kernel_shape(NEON, (16, 16), bf16=bf16), openmp=True), NEON)
    assembly = machine.emit_assembly(module)
    assert machine.triple.startswith("aarch64")
    assert "fmla\tv" in assembly  # a fused multiply-add of vectors
    assert "bl\tfmaf" not in assembly


@pytest.mark.parametrize(
    ("isa", "block", "bf16", "instruction"),
    [
        (AVX512, (16, 16), False, "vfmadd231ps"),
        (AVX512_BF16, (32, 32), True, "vdpbf16ps"),
        (AVX512, (8, 8), False, "vfmadd231ps"),
        (AVX512, (12, 12), False, "vfmadd231ps"),
        (AVX512, (8, 8), True, "vfmadd231ps"),
        (AVX512_BF16, (8, 8), True, "vdpbf16ps"),
        (AVX2, (16, 16), True, "vfmadd231ps"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_sums_stay_in_registers(isa, block, bf16, instruction):
    """In the innermost loop of a tile there is no store: a sum that is spilled costs more than the multiplication."""
    foreign = replace(isa, triple="x86_64-unknown-linux-gnu")
    shape = kernel_shape(foreign, block, bf16=bf16)
    machine, module = optimize(generate(shape, openmp=False), shape.isa)
    assembly = machine.emit_assembly(module)
    if shape.row_vectors:
        tile, multiplications = f"row_tile_{shape.row_vectors}", shape.height * shape.row_vectors
    else:
        tile, multiplications = f"tile_{shape.tile_rows}", shape.tile_rows * shape.vectors * shape.unrolled_steps
    tile = assembly.split(f"{tile}:")[1].split(".cfi_endproc")[0]
    loops = [part for part in tile.split(".LBB") if instruction in part]
    busiest = max(loops, key=lambda part: part.count(instruction))
    assert busiest.count(instruction) >= multiplications
    spilled = [line for line in busiest.splitlines() if "(%rsp)" in line and ("movaps" in line or "movups" in line)]
    assert not spilled
