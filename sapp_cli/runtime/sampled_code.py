"""The generated program for the gradient of kept blocks: for each of them dYᵀ·X of its rows and columns, and no others.

The field calls it a sampled dense-dense product (SDDMM). A tile is a piece of one block, with all its sums in registers
while it goes through the rows of x and dy, which lie in panels:

    x panels     [panel][block column][row][bc]                   dy panels   [panel][block row][row][padded_height]
    gradient     [block][column of the block][padded_height]: columns before outputs, as the kernels' weights lie

Each call of an entry gets one `job`, an array of 64-bit numbers (JOB below), and the number of its part. Panels are packed
in one call and multiplied in the next, so that threads share what each of them has packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import F32, I64, POINTER, Code, Value, Variable, define, define_team
from sapp_cli.codegen.isa import Isa

PANEL_ROWS = 124
"""Rows of a panel: enough to hide that a tile's sums are loaded before it and stored after it."""
ROW_STEP = 4
"""Rows of a panel are filled up to a multiple with zeros, for loops that take several at once."""
MOST_TILE_COLUMNS = 16
LEAST_LANES = 8
"""A narrower vector costs as much time as one of these."""

JOB = ("parts", "x", "dy", "in", "out", "rows", "x_panels", "dy_panels", "gradient", "crow", "columns")
"""Addresses and sizes that all parts share; `rows` of x and dy that are packed."""
PART = ("first", "last")
"""What follows after JOB, once for each part: panels of `pack`, block rows of `multiply`; the last is one past the end."""
ENTRIES = ("pack", "multiply")


@dataclass(frozen=True)
class SampledShape:
    """Everything that the generated code depends on."""

    isa: Isa
    block: tuple[int, int]
    """Rows and columns (br, bc): outputs and inputs."""
    lanes: int
    """Outputs in one vector."""
    tile: tuple[int, int]
    """Columns of the block and vectors of its outputs in the largest tile."""

    @property
    def name(self) -> str:
        return f"sampled-{self.isa.name}-{self.block[0]}x{self.block[1]}"

    @property
    def vectors(self) -> int:
        """Vectors that hold the outputs of a block."""
        return -(-self.block[0] // self.lanes)

    @property
    def padded_height(self) -> int:
        return self.vectors * self.lanes


@lru_cache
def sampled_shape(isa: Isa, block: tuple[int, int]) -> SampledShape:
    """The tile that needs the fewest loads: one for each of its columns and vectors, at every row of x."""
    outputs, columns = block
    lanes = min(isa.lanes, max(min(LEAST_LANES, isa.lanes), outputs & -outputs))
    vectors = -(-outputs // lanes)
    ways = []
    for across in range(1, min(4, vectors) + 1):
        fit = (isa.registers - across - 1) // across  # the vectors of dy and one of x need registers as well
        down = min(columns, MOST_TILE_COLUMNS, fit)
        if down >= 1:
            loads = -(-vectors // across) * columns + -(-columns // down) * vectors
            ways.append((loads, -across, down))
    _, across, down = min(ways)
    return SampledShape(isa, block, lanes, (_largest(columns, down), _largest(vectors, -across)))


def generate(shape: SampledShape, *, openmp: bool) -> Any:
    """An LLVM module with `pack(job, part)` and `multiply(job, part)`.

    With `openmp` also `pack_team(job)` and `multiply_team(job)`, for each thread of a team.
    """
    module = ir.Module(shape.name)
    _define_pack(module, shape)
    _define_multiply(module, shape)
    for entry in ENTRIES if openmp else ():
        define_team(module, entry, JOB.index("parts"))
    return module


def _job(code: Code, args: dict[str, Value]) -> dict[str, Value]:
    """The numbers of the job and of the part, addresses as such."""
    job = {name: code.load(I64, code.element(args["job"], I64, place), align=8) for place, name in enumerate(JOB)}
    for name in ("x", "dy", "x_panels", "dy_panels", "gradient", "crow", "columns"):
        job[name] = code.ir.inttoptr(job[name], POINTER)
    start = code.sum(code.product(args["part"], len(PART)), len(JOB))
    for place, name in enumerate(PART):
        job[name] = code.load(I64, code.element(args["job"], I64, code.sum(start, place)), align=8)
    return job


def _blocks(code: Code, size: Value, side: int) -> Value:
    """Blocks of this side along a matrix of this size."""
    return code.ir.sdiv(code.sum(size, side - 1), code.number(side))


def _padded_rows(code: Code, job: dict[str, Value], panel: Value) -> tuple[Value, Value]:
    """(rows of the panel, the same filled up)."""
    rows = code.minimum(code.ir.sub(job["rows"], code.product(panel, PANEL_ROWS)), PANEL_ROWS)
    return rows, code.product(_blocks(code, rows, ROW_STEP), ROW_STEP)


def _define_pack(module: Any, shape: SampledShape) -> None:
    code, args = define(module, "pack", {"job": POINTER, "part": I64})
    job = _job(code, args)
    (outputs, columns), lanes = shape.block, shape.isa.lanes
    with code.loop(job["last"], start=job["first"]) as panel:
        rows, padded = _padded_rows(code, job, panel)
        for source, size, side, stored, target in (
            ("x", "in", columns, columns, "x_panels"),
            ("dy", "out", outputs, shape.padded_height, "dy_panels"),
        ):
            blocks = _blocks(code, job[size], side)
            before = code.product(panel, PANEL_ROWS, blocks, stored)
            start = code.element(job[target], F32, before)
            first = code.element(job[source], F32, code.product(panel, PANEL_ROWS, job[size]))
            _pack_panel(code, first, job[size], (side, stored), (rows, padded), blocks, start, lanes)
    code.ir.ret_void()


def _pack_panel(
    code: Code,
    source: Value,
    size: Value,
    sides: tuple[int, int],
    counts: tuple[Value, Value],
    blocks: Value,
    target: Value,
    lanes: int,
) -> None:
    """Copy [rows][size] into [block][padded rows][stored], `sides` (a block's, stored), zeros wherever there is nothing."""
    (side, stored), (rows, padded) = sides, counts
    whole = code.ir.sdiv(size, code.number(side))
    zero = ir.Constant(F32, 0.0)

    def place(block: Value, row: Value) -> Value:
        return code.element(target, F32, code.product(code.sum(code.product(block, padded), row), stored))

    def clear(start: Value, first: Value | int) -> None:
        with code.loop(stored, start=first) as column:
            code.store(zero, code.element(start, F32, column))

    def copy(origin: Value, start: Value) -> None:
        """A whole block's entries of one row, in vectors as long as there are enough of them."""
        done = 0
        for width in (lanes, 8, 4, 1):
            kind = ir.VectorType(F32, width) if width > 1 else F32
            while side - done >= width and (width > 1 or side - done < 4):
                code.store(code.load(kind, code.element(origin, F32, done)), code.element(start, F32, done))
                done += width
        if stored > side:
            clear(start, side)

    with code.loop(rows) as row:
        line = code.element(source, F32, code.product(row, size))
        with code.loop(whole) as block:
            copy(code.element(line, F32, code.product(block, side)), place(block, row))
        with code.loop(blocks, start=whole) as block:  # none, or one
            rest = code.ir.sub(size, code.product(block, side))
            origin, start = code.element(line, F32, code.product(block, side)), place(block, row)
            with code.loop(rest) as column:
                code.store(code.load(F32, code.element(origin, F32, column)), code.element(start, F32, column))
            clear(start, rest)
    with code.loop(padded, start=rows) as row, code.loop(blocks) as block:
        clear(place(block, row), 0)


def _define_multiply(module: Any, shape: SampledShape) -> None:
    (outputs, columns), height = shape.block, shape.padded_height
    pieces = list(product(_cut(columns, shape.tile[0]), _cut(shape.vectors, shape.tile[1])))
    sizes = sorted({(count, across) for (_, count), (_, across) in pieces})
    tiles = {size: _define_tile(module, shape, *size) for size in sizes}
    code, args = define(module, "multiply", {"job": POINTER, "part": I64})
    job = _job(code, args)
    block_columns, block_rows = _blocks(code, job["in"], columns), _blocks(code, job["out"], outputs)
    with code.loop(_blocks(code, job["rows"], PANEL_ROWS)) as panel:
        _, padded = _padded_rows(code, job, panel)
        x_panel = code.element(job["x_panels"], F32, code.product(panel, PANEL_ROWS, block_columns, columns))
        dy_panel = code.element(job["dy_panels"], F32, code.product(panel, PANEL_ROWS, block_rows, height))
        with code.loop(job["last"], start=job["first"]) as block_row:
            dy = code.element(dy_panel, F32, code.product(block_row, padded, height))
            last = code.index(job["crow"], code.sum(block_row, 1))
            with code.loop(last, start=code.index(job["crow"], block_row)) as block:
                column = code.index(job["columns"], block)
                x = code.element(x_panel, F32, code.product(column, padded, columns))
                gradient = code.element(job["gradient"], F32, code.product(block, columns, height))
                for (first, count), (start, across) in pieces:
                    offset = start * shape.lanes
                    code.ir.call(
                        tiles[count, across],
                        [
                            code.element(x, F32, first),
                            code.element(dy, F32, offset),
                            padded,
                            code.element(gradient, F32, first * height + offset),
                        ],
                    )
    code.ir.ret_void()


def _largest(size: int, most: int) -> int:
    return max(count for _, count in _cut(size, most))


def _cut(size: int, most: int) -> list[tuple[int, int]]:
    """(first, count) of nearly equal pieces: 32 by at most 14 are 11, 11 and 10."""
    pieces = -(-size // most)
    cuts = [size * number // pieces for number in range(pieces + 1)]
    return [(first, last - first) for first, last in pairwise(cuts)]


def _define_tile(module: Any, shape: SampledShape, count: int, across: int) -> Any:
    """The function gradient += xᵀ·dy for `count` columns of a block and `across` vectors of its outputs."""
    arguments = {"x": POINTER, "dy": POINTER, "rows": I64, "gradient": POINTER}
    code, args = define(module, f"tile_{count}_{across}", arguments, private=True)
    kind, height = ir.VectorType(F32, shape.lanes), shape.padded_height
    places = [
        [code.element(args["gradient"], F32, column * height + q * shape.lanes) for q in range(across)]
        for column in range(count)
    ]
    sums = [[Variable(code, code.load(kind, place)) for place in line] for line in places]
    at_once = ROW_STEP if count * across <= 8 else ROW_STEP // 2 if count * across <= 16 else 1
    with code.loop(args["rows"], step=at_once) as first_row:
        for number in range(at_once):
            row = code.sum(first_row, number)
            x = code.element(args["x"], F32, code.product(row, shape.block[1]))
            dy = code.element(args["dy"], F32, code.product(row, height))
            vectors = [code.load(kind, code.element(dy, F32, q * shape.lanes)) for q in range(across)]
            for column, line in enumerate(sums):
                value = code.splat(code.load(F32, code.element(x, F32, column)), shape.lanes)
                for total, vector in zip(line, vectors, strict=True):
                    name = f"llvm.fmuladd.v{shape.lanes}f32"
                    total.set(code.intrinsic(name, kind, value, vector, total.get()))
    for places_of_line, line in zip(places, sums, strict=True):
        for place, total in zip(places_of_line, line, strict=True):
            code.store(total.get(), place)
    code.ir.ret_void()
    return code.function
