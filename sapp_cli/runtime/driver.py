"""The generated program around the tiles: x packed into panels, block rows one after the other, parts for threads.

Every call gets one `job`, an array of 64-bit numbers (JOB below), so that any thread can be told by one address and a
number which part is its own. Rows of x are taken a panel at a time: the panel stays in the cache while all block rows
read it in their own order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import F32, I32, I64, POINTER, Code, Value, define, define_team
from sapp_cli.runtime.kernel_shape import KernelShape
from sapp_cli.runtime.panels import Source, pack_by_rows, pack_by_steps
from sapp_cli.runtime.row_tiles import define_row_tile, define_write
from sapp_cli.runtime.tiles import define_single_row, define_tile

JOB = (
    "x",
    "y",
    "panels",
    "in",
    "out",
    "values",
    "crow",
    "columns",
    "bias",
    "row_places",
    "column_places",
    "panel_bytes",
    "panel_rows",
    "single",
    "parts",
)
"""Addresses and sizes that all parts share. `row_places`, `column_places`: of scattered x (panels.py), else 0; `single`: 1 for
a batch of one row."""
PART = ("first_row", "last_row", "first_block_row", "last_block_row")
"""What follows after JOB, once for each part; last ones are one past the end."""
ENTRY = "run_part"
FEW_ROWS = 8
"""So many rows of x are too few for vectors that run over rows."""


def generate(shape: KernelShape, *, openmp: bool) -> Any:
    """An LLVM module with `run_part(job, part)` and, with `openmp`, `run_part_team(job)` for each thread of a team."""
    module = ir.Module(shape.name)
    _define_run_part(module, shape)
    if openmp:
        define_team(module, ENTRY, JOB.index("parts"))
    return module


def _define_run_part(module: Any, shape: KernelShape) -> None:
    tiles = {rows: define_tile(module, shape, rows) for rows in range(1, shape.tile_rows + 1)}
    row_tiles = {vectors: define_row_tile(module, shape, vectors) for vectors in range(1, shape.row_vectors + 1)}
    single_row = define_single_row(module, shape)
    write = define_write(module, shape) if row_tiles else None
    code, args = define(module, ENTRY, {"job": POINTER, "part": I64})
    arithmetic, lanes = shape.arithmetic, shape.isa.lanes
    most = shape.slots * shape.slot_width * shape.row_vectors * lanes if row_tiles else 1
    slots = code.stack(arithmetic.stored, most)
    job = {name: code.load(I64, code.element(args["job"], I64, place), align=8) for place, name in enumerate(JOB)}
    for name in ("x", "y", "values", "crow", "columns", "bias", "panels", "row_places", "column_places"):
        job[name] = code.ir.inttoptr(job[name], POINTER)
    start = code.sum(code.product(args["part"], len(PART)), len(JOB))
    for place, name in enumerate(PART):
        job[name] = code.load(I64, code.element(args["job"], I64, code.sum(start, place)), align=8)
    panel = code.element(job["panels"], ir.IntType(8), code.product(args["part"], job["panel_bytes"]))
    block_columns = code.ir.sdiv(code.sum(job["in"], shape.width - 1), code.number(shape.width))

    panels = code.ir.sdiv(
        code.sum(code.ir.sub(job["last_row"], job["first_row"]), code.ir.sub(job["panel_rows"], code.number(1))),
        job["panel_rows"],
    )
    with code.loop(panels) as number:
        first_row = code.sum(job["first_row"], code.product(number, job["panel_rows"]))
        rows = code.minimum(code.ir.sub(job["last_row"], first_row), job["panel_rows"])
        x = Source(code, shape, job["x"], job["in"], first_row, job["row_places"], job["column_places"])
        y = code.element(job["y"], arithmetic.stored, code.product(first_row, job["out"]))

        def multiply_by_rows(x: Source = x, rows: Value = rows, y: Value = y) -> None:
            pack_by_rows(code, shape, x, rows, block_columns, panel)
            stride = code.product(rows, shape.padded_width)
            with code.loop(job["last_block_row"], start=job["first_block_row"]) as block_row:
                common = _block_row(code, shape, job, block_row)
                target, width = _outputs(code, shape, job, y, block_row, 1)
                with code.ir.if_else(code.ir.icmp_signed("==", job["single"], code.number(1))) as (one_row, many_rows):
                    with one_row:
                        code.ir.call(single_row, [panel, stride, *common, target, job["out"], width])
                    with many_rows:
                        _call_tiles(code, shape, tiles, rows, panel, stride, common, target, job["out"], width)

        def multiply_by_steps(x: Source = x, rows: Value = rows, y: Value = y) -> None:
            pack_by_steps(code, shape, x, rows, block_columns, panel)
            vectors = code.ir.sdiv(code.sum(rows, lanes - 1), code.number(lanes))
            stride = code.product(vectors, lanes * shape.padded_width)
            slot_stride = code.product(vectors, lanes * shape.slot_width)
            with code.loop(job["last_block_row"], start=job["first_block_row"], step=shape.group) as first:
                count = code.minimum(code.ir.sub(job["last_block_row"], first), shape.group)
                with code.loop(count) as number:
                    values, columns, blocks, bias = _block_row(code, shape, job, code.sum(first, number))
                    for piece in range(shape.row_pieces):
                        outputs = piece * shape.row_height
                        place = code.sum(code.product(number, shape.row_pieces), piece)
                        arguments = [
                            *(panel, stride, code.element(values, arithmetic.stored, outputs * arithmetic.step)),
                            *(columns, blocks, code.element(bias, F32, outputs)),
                            code.element(slots, arithmetic.stored, code.product(place, slot_stride)),
                        ]
                        calls = {n: partial(code.ir.call, tile, arguments) for n, tile in row_tiles.items()}
                        code.switch(vectors, calls)
                target, width = _outputs(code, shape, job, y, first, count)
                code.ir.call(write, [slots, slot_stride, target, job["out"], rows, width])

        if row_tiles:
            with code.ir.if_else(code.ir.icmp_signed(">", rows, code.number(FEW_ROWS))) as (many, few):
                with many:
                    multiply_by_steps()
                with few:
                    multiply_by_rows()
        else:
            multiply_by_rows()
    code.ir.ret_void()


def _block_row(code: Code, shape: KernelShape, job: dict[str, Value], block_row: Value) -> list[Value]:
    """What the tiles of a block row share: values, columns, number of blocks, bias."""
    first = code.index(job["crow"], block_row)
    last = code.index(job["crow"], code.sum(block_row, 1))
    values = code.element(job["values"], shape.arithmetic.stored, code.product(first, shape.block_size))
    columns = code.element(job["columns"], I32, first)
    bias = code.element(job["bias"], F32, code.product(block_row, shape.padded_height))
    return [values, columns, code.ir.sub(last, first), bias]


def _outputs(
    code: Code, shape: KernelShape, job: dict[str, Value], y: Value, block_row: Value, count: Value | int
) -> tuple[Value, Value]:
    """(where the first output of `count` block rows goes in the first row of y, how many outputs they have)."""
    first = code.product(block_row, shape.height)
    width = code.minimum(code.ir.sub(job["out"], first), code.product(count, shape.height))
    return code.element(y, shape.arithmetic.stored, first), width


def _call_tiles(
    code: Code,
    shape: KernelShape,
    tiles: dict[int, Any],
    rows: Value,
    panel: Value,
    stride: Value,
    common: list[Value],
    y: Value,
    out: Value,
    width: Value,
) -> None:
    """All rows of the panel in tiles of nearly equal height: 13 rows are 7 and 6, not 12 and 1."""
    count = code.ir.sdiv(code.sum(rows, shape.tile_rows - 1), code.number(shape.tile_rows))
    with code.loop(count) as number:
        first = code.ir.sdiv(code.product(number, rows), count)
        last = code.ir.sdiv(code.product(code.sum(number, 1), rows), count)
        source = code.element(panel, shape.arithmetic.panel, code.product(first, shape.padded_width))
        target = code.element(y, shape.arithmetic.stored, code.product(first, out))

        def call(height: int, source: Value = source, target: Value = target) -> None:
            code.ir.call(tiles[height], [source, stride, *common, target, out, width])

        code.switch(code.ir.sub(last, first), {height: lambda height=height: call(height) for height in tiles})  # type: ignore[misc]
