"""The innermost code: a few rows of x times the blocks of one block row, with all sums in registers.

Letters: `rows` of x in a tile; `vectors` of outputs in a row; `blocks` that the block row has; `width` outputs that the
block row really has (its last one may be cut off by the edge of the matrix).

    panel    [block column][row of the panel][padded_width]          values   [block][step][padded_height][column of step]
    bias     [padded_height], float32                                y        [row][out]
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import F32, I64, POINTER, Code, Value, Variable, define
from sapp_cli.runtime.kernel_shape import KernelShape

CACHE_LINE = 16
"""Entries of y in a cache line of 64 bytes; of bfloat16, half of one."""

ARGUMENTS = {
    "panel": POINTER,  # at the first row of the tile
    "column_stride": I64,  # entries of the panel from one block column to the next
    "values": POINTER,  # of the first block
    "columns": POINTER,  # int32: block column of each block
    "blocks": I64,
    "bias": POINTER,
    "y": POINTER,  # at the first row of the tile and the first output
    "out": I64,  # entries of y from one row to the next
    "width": I64,
}


def define_tile(module: Any, shape: KernelShape, rows: int) -> Any:
    """The function y = bias + panel · valuesᵀ for `rows` rows of x; sums go column by column, whatever the tile's size."""
    code, args = define(module, f"tile_{rows}", ARGUMENTS, private=True)
    bias = _bias(code, shape, args["bias"])
    _prefetch(code, shape, args, rows)
    sums = [[Variable(code, vector) for vector in bias] for _ in range(rows)]
    with code.loop(args["blocks"]) as block:
        x, values = block_addresses(code, shape, args, block)
        with code.loop(shape.steps, step=shape.unrolled_steps) as first_step:
            first_column = _column(code, shape, x, first_step)
            for unrolled in range(shape.unrolled_steps):
                weights = _weights(code, shape, values, code.sum(first_step, unrolled))
                for row in range(rows):
                    offset = row * shape.padded_width + unrolled * shape.arithmetic.step
                    shape.arithmetic.take_in(code, sums[row], first_column, offset, weights)
    _store(code, shape, args, [[total.get() for total in row] for row in sums])
    code.ir.ret_void()
    return code.function


def define_single_row(module: Any, shape: KernelShape) -> Any:
    """The same for the one row of x of a batch of one: several chains of sums, or it would wait for each addition."""
    code, args = define(module, "single_row", ARGUMENTS, private=True)
    chains = next(count for count in (8, 4, 2, 1) if shape.steps % count == 0 and count * shape.vectors <= 8)
    bias = _bias(code, shape, args["bias"])
    zero = ir.Constant(ir.VectorType(F32, shape.lanes), [0.0] * shape.lanes)
    sums = [[Variable(code, vector if chain == 0 else zero) for vector in bias] for chain in range(chains)]
    with code.loop(args["blocks"]) as block:
        x, values = block_addresses(code, shape, args, block)
        with code.loop(shape.steps, step=chains) as first_step:
            first_column = _column(code, shape, x, first_step)
            for chain in range(chains):
                weights = _weights(code, shape, values, code.sum(first_step, chain))
                shape.arithmetic.take_in(code, sums[chain], first_column, chain * shape.arithmetic.step, weights)
    while len(sums) > 1:  # pairwise
        half = len(sums) // 2
        for first, second in zip(sums[:half], sums[half:], strict=True):
            for left, right in zip(first, second, strict=True):
                left.set(code.ir.fadd(left.get(), right.get()))
        sums = sums[:half]
    _store(code, shape, args, [[total.get() for total in sums[0]]])
    code.ir.ret_void()
    return code.function


def _bias(code: Code, shape: KernelShape, bias: Value) -> list[Value]:
    vector = ir.VectorType(F32, shape.lanes)
    return [code.load(vector, code.element(bias, F32, q * shape.lanes)) for q in range(shape.vectors)]


def block_addresses(code: Code, shape: KernelShape, args: dict[str, Value], block: Value) -> tuple[Value, Value]:
    """Addresses of the block's columns of x in the panel, and of its values."""
    column = code.index(args["columns"], block)
    x = code.element(args["panel"], shape.arithmetic.panel, code.product(column, args["column_stride"]))
    return x, code.element(args["values"], shape.arithmetic.stored, code.product(block, shape.block_size))


def _weights(code: Code, shape: KernelShape, values: Value, step: Value) -> list[Value]:
    """The weights of all outputs for one step of columns."""
    per_step = shape.padded_height * shape.arithmetic.step
    per_vector = shape.lanes * shape.arithmetic.step
    row = code.element(values, shape.arithmetic.stored, code.product(step, per_step))
    places = [code.element(row, shape.arithmetic.stored, q * per_vector) for q in range(shape.vectors)]
    return [shape.arithmetic.weights(code, place, shape.lanes) for place in places]


def _prefetch(code: Code, shape: KernelShape, args: dict[str, Value], rows: int) -> None:
    """Ask for the places of y, which seldom are in the cache: they are there when the sums are."""
    for row in range(rows):
        start = code.element(args["y"], shape.arithmetic.stored, code.product(args["out"], row))
        for line in range(0, shape.height, CACHE_LINE):
            code.prefetch_for_writing(code.element(start, shape.arithmetic.stored, line))


def _column(code: Code, shape: KernelShape, x: Value, step: Value) -> Value:
    """Address of the first row of x at this step."""
    return code.element(x, shape.arithmetic.panel, code.product(step, shape.arithmetic.step))


def _store(code: Code, shape: KernelShape, args: dict[str, Value], sums: list[list[Value]]) -> None:
    """Write whole vectors where y has room for them, else by way of the stack what there is room for."""
    stored = shape.arithmetic.stored
    rounded = [[shape.arithmetic.rounded(code, vector) for vector in row] for row in sums]

    def write(place: Value, stride: Value | int) -> None:
        for row, vectors in enumerate(rounded):
            start = code.element(place, stored, code.product(stride, row))
            for q, vector in enumerate(vectors):
                code.store(vector, code.element(start, stored, q * shape.lanes), align=2)

    aside = code.stack(stored, len(rounded) * shape.padded_height)
    whole = code.ir.icmp_signed("==", args["width"], code.number(shape.padded_height))
    with code.ir.if_else(whole) as (has_room, has_not):
        with has_room:
            write(args["y"], args["out"])
        with has_not:
            write(aside, shape.padded_height)
            with code.loop(len(rounded)) as row, code.loop(args["width"]) as column:
                source = code.element(aside, stored, code.sum(code.product(row, shape.padded_height), column))
                target = code.element(args["y"], stored, code.sum(code.product(row, args["out"]), column))
                code.store(code.load(stored, source, align=2), target, align=2)
