"""The generated programs: a weight's matrix row by row, one number a block beside it.

A training step reads and writes every weight a few times for its mask. Done operation by operation that is bound by memory;
these programs read each entry once, a few rows of a block at a time, along the rows as they lie. Entries (G: `grad`,
W: `matrix`, (out, in); S: `scale`, sums, squares: (R, C); out may be G itself):

    scale      out = W ⊙ spread(S)
    gradients  out = G ⊙ spread(S),  sums_b = Σ_b G ⊙ W,  squares_b = Σ_b (G ⊙ W)²
    squares    squares_b = Σ_b (G ⊙ W)²
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import F32, I64, POINTER, Code, Value, define, define_team
from sapp_cli.codegen.isa import Isa

JOB = ("parts", "block_columns", "grad", "matrix", "scale", "out", "sums", "squares")
"""Sizes and addresses that all parts share; those that an entry does not use may be anything."""
PART = ("first", "last")
"""What follows after JOB, once for each part: its block rows, the last is one past the end."""
ENTRIES = ("scale", "gradients", "squares")
ROWS_AT_ONCE = 4
"""Rows of a block whose sums stay in registers: as many streams as a prefetcher follows with ease."""


@dataclass(frozen=True)
class PassShape:
    """Everything that the generated code depends on."""

    isa: Isa
    block: tuple[int, int]
    """Rows and columns (br, bc)."""

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """(first column, columns) of the vectors that a row of a block is cut into: 10 are 8 and 2."""
        columns, pieces = self.block[1], []
        done, width = 0, self.isa.lanes
        while done < columns:
            if width > columns - done:
                width //= 2
                continue
            pieces.append((done, width))
            done += width
        return pieces


def generate(shape: PassShape, *, openmp: bool) -> Any:
    """An LLVM module with `ENTRY(job, part)` for each of ENTRIES and, with `openmp`, `ENTRY_team(job)`."""
    module = ir.Module(f"passes-{shape.isa.name}-{shape.block[0]}x{shape.block[1]}")
    for entry in ENTRIES:
        _define_entry(module, shape, entry)
        if openmp:
            define_team(module, entry, JOB.index("parts"))
    return module


def _define_entry(module: Any, shape: PassShape, entry: str) -> None:
    height, width = shape.block
    code, args = define(module, entry, {"job": POINTER, "part": I64})
    job = {name: code.load(I64, code.element(args["job"], I64, place), align=8) for place, name in enumerate(JOB)}
    for name in JOB[2:]:
        job[name] = code.ir.inttoptr(job[name], POINTER)
    start = code.sum(code.product(args["part"], len(PART)), len(JOB))
    first, last = (
        code.load(I64, code.element(args["job"], I64, code.sum(start, place)), align=8) for place in range(len(PART))
    )
    line = code.product(job["block_columns"], width)  # entries of a row
    with code.loop(last, start=first) as block_row:
        for top in range(0, height, ROWS_AT_ONCE):
            rows = range(top, min(top + ROWS_AT_ONCE, height))
            with code.loop(job["block_columns"]) as block_column:
                block = code.sum(code.product(block_row, job["block_columns"]), block_column)
                corner = code.sum(code.product(block_row, height, line), code.product(block_column, width))
                starts = [code.sum(corner, code.product(line, row)) for row in rows]
                for name, added in _rows_of_a_block(code, shape, entry, job, block, starts).items():
                    place = code.element(job[name], F32, block)
                    code.store(code.ir.fadd(code.load(F32, place), added) if top else added, place)
    code.ir.ret_void()


def _rows_of_a_block(
    code: Code, shape: PassShape, entry: str, job: dict[str, Value], block: Value, starts: list[Value]
) -> dict[str, Value]:
    """Do some rows of a block, whose first entries are `starts`; gives what they add to its sums, by their name."""
    scale = None if entry == "squares" else code.load(F32, code.element(job["scale"], F32, block))
    totals: dict[tuple[str, int], Value] = {}  # by the width of the vectors as well

    def add(name: str, width: int, term: Value) -> None:
        total = totals.get((name, width))
        totals[name, width] = term if total is None else code.ir.fadd(total, term)

    for row in starts:
        for column, width in shape.pieces:
            kind = ir.VectorType(F32, width) if width > 1 else F32
            place = code.sum(row, column)
            value = code.load(kind, code.element(job["matrix"], F32, place))
            if entry != "scale":
                grad = code.load(kind, code.element(job["grad"], F32, place))
                product = code.ir.fmul(grad, value)
                if entry == "gradients":
                    add("sums", width, product)
                add("squares", width, code.ir.fmul(product, product))
                value = grad
            if scale is not None:
                factor = code.splat(scale, width) if width > 1 else scale
                code.store(code.ir.fmul(value, factor), code.element(job["out"], F32, place))
    sums: dict[str, Value] = {}
    for (name, _), vector in totals.items():
        total = code.added_up(vector)
        sums[name] = code.ir.fadd(sums[name], total) if name in sums else total
    return sums
