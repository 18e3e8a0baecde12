"""Rows of x copied into a panel, so that what a block multiplies lies together and stays in the cache.

Two layouts, for the two kinds of tiles, both with zeros beyond the right edge of x:

    by rows     [block column][row][padded_width]                            tiles.py
    by steps    [block column][step][row, padded][column of the step]        row_tiles.py
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import I64, Code, Value
from sapp_cli.runtime.kernel_shape import KernelShape


@dataclass(frozen=True)
class Source:
    """Where the rows of a panel are in x."""

    code: Code
    shape: KernelShape
    x: Value
    columns: Value
    """Of x, all block columns together."""
    first_row: Value
    row_places: Value
    """Array of int64, for scattered x: at which entry of x a row begins,"""
    column_places: Value
    """and how many entries behind that a block column does."""

    def row(self, row: Value) -> Value:
        """Address of a row, of the first one of the panel for 0."""
        number = self.code.sum(self.first_row, row)
        return self._entry(
            self.x,
            self._place(self.row_places, number) if self.shape.scattered else self._product(number, self.columns),
        )

    def block(self, row: Value, block: Value) -> Value:
        """Address of the first column of a block column, in the row at this address."""
        scattered = self.shape.scattered
        return self._entry(
            row, self._place(self.column_places, block) if scattered else self._product(block, self.shape.width)
        )

    def _place(self, places: Value, number: Value) -> Value:
        return self.code.load(I64, self.code.element(places, I64, number), align=8)

    def _product(self, number: Value, size: Value | int) -> Value:
        return self.code.product(number, size)

    def _entry(self, start: Value, number: Value) -> Value:
        return self.code.element(start, self.shape.arithmetic.stored, number)


def pack_by_rows(code: Code, shape: KernelShape, x: Source, rows: Value, block_columns: Value, panel: Value) -> None:
    """Copy x [rows][in] into the panel [block column][rows][padded_width], zeros beyond the edge of x."""
    arithmetic = shape.arithmetic
    zero = ir.Constant(arithmetic.panel, 0)
    whole_blocks = code.ir.sdiv(x.columns, code.number(shape.width))

    def target_of(row: Value, block: Value) -> Value:
        before = code.product(code.sum(code.product(block, rows), row), shape.padded_width)
        return code.element(panel, arithmetic.panel, before)

    def copy(source: Value, target: Value, count: Value | int) -> None:
        with code.loop(count) as column:
            value = code.load(arithmetic.stored, code.element(source, arithmetic.stored, column), align=2)
            place = code.element(target, arithmetic.panel, column)
            code.store(arithmetic.to_panel(code, value), place, align=2)

    def clear(target: Value, first: Value | int) -> None:
        with code.loop(shape.padded_width, start=first) as column:
            code.store(zero, code.element(target, arithmetic.panel, column), align=2)

    with code.loop(rows) as row:
        source = x.row(row)
        with code.loop(whole_blocks) as block:
            target = target_of(row, block)
            copy(x.block(source, block), target, shape.width)
            clear(target, shape.width)
        with code.loop(block_columns, start=whole_blocks) as block:  # none, or one
            target = target_of(row, block)
            rest = code.ir.sub(x.columns, code.product(block, shape.width))
            copy(x.block(source, block), target, rest)
            clear(target, rest)


def pack_by_steps(code: Code, shape: KernelShape, x: Source, rows: Value, block_columns: Value, panel: Value) -> None:
    """Copy x [rows][in] into the panel [block column][step][row, padded to whole vectors][column of the step].

    Rows beyond the last hold copies of it: finite where it is, and their sums are not looked at.
    """
    arithmetic, lanes = shape.arithmetic, shape.isa.lanes
    groups = code.ir.sdiv(code.sum(rows, lanes - 1), code.number(lanes))
    padded_rows = code.product(groups, lanes)
    last_row = code.ir.sub(rows, code.number(1))
    whole_blocks = code.ir.sdiv(x.columns, code.number(shape.width))
    if shape.width % arithmetic.step:
        whole_blocks = code.number(0)  # the last step of each is only partly in x

    def place(block: Value, step: Value | int, row: Value) -> Value:
        before = code.sum(code.product(code.sum(code.product(block, shape.steps), step), padded_rows), row)
        return code.element(panel, arithmetic.panel, code.product(before, arithmetic.step))

    with code.loop(groups) as group:
        first_row = code.product(group, lanes)
        sources = [x.row(code.minimum(last_row, code.sum(first_row, lane))) for lane in range(lanes)]
        with code.loop(whole_blocks) as block:
            columns_of_rows = [x.block(source, block) for source in sources]
            for step, count in _pieces(shape.steps, lanes):
                rows_of_x = [
                    arithmetic.steps_of_row(
                        code, code.element(columns, arithmetic.stored, step * arithmetic.step), count
                    )
                    for columns in columns_of_rows
                ]
                for number, vector in enumerate(code.transposed(rows_of_x)):
                    turned, lane = divmod(number * count, lanes)
                    code.store(vector, place(block, step + turned, code.sum(first_row, lane)))
    with code.loop(block_columns, start=whole_blocks) as block:  # mostly none, or one
        rest = code.minimum(code.ir.sub(x.columns, code.product(block, shape.width)), shape.width)
        with code.loop(padded_rows) as row:
            source = x.block(x.row(code.minimum(last_row, row)), block)
            with code.loop(shape.padded_width) as column:
                step = code.ir.sdiv(column, code.number(arithmetic.step))
                target = code.element(
                    place(block, step, row), arithmetic.panel, code.ir.srem(column, code.number(arithmetic.step))
                )
                inside = code.ir.icmp_signed("<", column, rest)
                with code.ir.if_else(inside) as (is_there, is_not):
                    with is_there:
                        value = code.load(arithmetic.stored, code.element(source, arithmetic.stored, column), align=2)
                        code.store(arithmetic.to_panel(code, value), target, align=2)
                    with is_not:
                        code.store(ir.Constant(arithmetic.panel, 0), target, align=2)


def _pieces(steps: int, most: int) -> list[tuple[int, int]]:
    """Steps of a block as (first, count) whose counts are powers of two: 7 steps are 4, 2 and 1."""
    pieces, first = [], 0
    while first < steps:
        count = min(most, 1 << ((steps - first).bit_length() - 1))
        pieces.append((first, count))
        first += count
    return pieces
