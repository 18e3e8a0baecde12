"""The innermost code for blocks that fill no vector with their outputs: vectors run over rows of x instead.

A block of 8 outputs would leave half of each AVX-512 register empty. Here each lane has a row of x of its own, every sum is one
output of 16 rows, and a weight is broadcast. What comes out lies output by output; it is turned, put into a slot on the
stack, and written to y when the slots of a few block rows fill a cache line of each row: y costs most where a row of it is
touched again and again.

    panel    [block column][step][row][column of step]               values   [block][step][padded_height][column of step]
    bias     [padded_height], float32                                slots    [slot][row][slot_width]
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import F32, I64, POINTER, Code, Value, Variable, define
from sapp_cli.runtime.kernel_shape import KernelShape
from sapp_cli.runtime.tiles import block_addresses

ARGUMENTS = {
    "panel": POINTER,
    "column_stride": I64,  # entries of the panel from one block column to the next
    "values": POINTER,  # of the first block
    "columns": POINTER,  # int32: block column of each block
    "blocks": I64,
    "bias": POINTER,
    "slot": POINTER,
}


def define_row_tile(module: Any, shape: KernelShape, vectors: int) -> Any:
    """The function slot = bias + panel · valuesᵀ for as many rows of x as fill so many vectors.

    Each sum takes in column after column, as in the other tiles: the result is the same, bit for bit.
    """
    code, args = define(module, f"row_tile_{vectors}", ARGUMENTS, private=True)
    arithmetic, lanes = shape.arithmetic, shape.isa.lanes
    per_step = vectors * lanes * arithmetic.step  # entries of the panel
    sums = []
    for output in range(shape.row_height):
        bias = code.splat(code.load(F32, code.element(args["bias"], F32, output)), lanes)
        sums.append([Variable(code, bias) for _ in range(vectors)])
    with code.loop(args["blocks"]) as block:
        x, values = block_addresses(code, shape, args, block)
        size = shape.padded_height * arithmetic.step
        with code.loop(
            shape.steps
        ) as step:  # not unrolled: one step is long enough, and of more LLVM loads too much too early
            x_of_step = code.element(x, arithmetic.panel, code.product(step, per_step))
            values_of_step = code.element(values, arithmetic.stored, code.product(step, size))
            rows = [
                arithmetic.rows_of_step(
                    code, code.element(x_of_step, arithmetic.panel, vector * lanes * arithmetic.step), lanes
                )
                for vector in range(vectors)
            ]
            for output in range(shape.row_height):
                place = code.element(values_of_step, arithmetic.stored, output * arithmetic.step)
                weight = arithmetic.weight(code, place, lanes)
                for total, row in zip(sums[output], rows, strict=True):
                    total.set(arithmetic.multiply_add(code, total.get(), row, weight))
    for vector in range(vectors):
        turned = code.transposed(_filled([totals[vector].get() for totals in sums], shape.slot_width))
        for number, values in enumerate(turned):
            place = (vector * len(turned) + number) * lanes
            target = code.element(args["slot"], arithmetic.stored, place)
            code.store(arithmetic.rounded(code, values), target, align=2)
    code.ir.ret_void()
    return code.function


def _filled(sums: list[Value], count: int) -> list[Value]:
    return sums + [ir.Constant(sums[0].type, ir.Undefined)] * (count - len(sums))


def define_write(module: Any, shape: KernelShape) -> Any:
    """The function that writes `width` outputs of `rows` rows to y, from as many slots as they fill, the last one partly."""
    arguments = {"slots": POINTER, "slot_stride": I64, "y": POINTER, "out": I64, "rows": I64, "width": I64}
    code, args = define(module, "write", arguments, private=True)
    stored, outputs = shape.arithmetic.stored, shape.slot_width
    one_slot = ir.VectorType(stored, outputs)

    def read(slot: Value | int, row: Value) -> Value:
        place = code.sum(code.product(args["slot_stride"], slot), code.product(row, outputs))
        return code.load(one_slot, code.element(args["slots"], stored, place), align=2)

    full = code.ir.icmp_signed("==", args["width"], code.number(shape.slots * outputs))
    with code.ir.if_else(full) as (all_outputs, some_outputs):
        with all_outputs, code.loop(args["rows"]) as row:
            pieces = [read(slot, row) for slot in range(shape.slots)]
            while len(pieces) > 1:
                pairs = zip(pieces[::2], pieces[1::2], strict=True)
                pieces = [code.shuffled(*pair, list(range(2 * pair[0].type.count))) for pair in pairs]
            code.store(pieces[0], code.element(args["y"], stored, code.product(args["out"], row)), align=2)
        with some_outputs, code.loop(_up(code, args["width"], shape.row_height)) as slot:
            first = code.product(slot, shape.row_height)
            mask = code.first_lanes(code.minimum(code.ir.sub(args["width"], first), shape.row_height), outputs)
            with code.loop(args["rows"]) as row:
                place = code.sum(code.product(args["out"], row), first)
                code.store_lanes(read(slot, row), code.element(args["y"], stored, place), mask)
    code.ir.ret_void()
    return code.function


def _up(code: Code, count: Value, size: int) -> Value:
    """How often `size` goes into `count`, rounded up."""
    return code.ir.sdiv(code.sum(count, size - 1), code.number(size))
