"""How one vector of outputs takes in one step of columns: in float32, or in bfloat16 with sums in float32.

A step is one column, or two where an instruction multiplies pairs. Weights lie in memory as [step][output][column of the
step], so that a vector load gives the weights of `lanes` outputs; x lies in a panel, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from sapp_cli.codegen.ir_builder import BF16, F32, I16, I32, POINTER, Code, Value, Variable


@dataclass(frozen=True)
class Arithmetic:
    """float32 throughout. Sums are float32 in all of them."""

    name: str = "fp32"
    step: int = 1
    """Columns that one instruction takes in."""
    stored: Any = F32
    """Type of x, the weights and y in memory; bfloat16 as its bits."""
    stored_bytes: int = 4
    panel: Any = F32
    """Type of x in a panel."""
    panel_bytes: int = 4

    def to_panel(self, code: Code, value: Value) -> Value:
        """An entry of x -> as the panel has it."""
        return value

    def weights(self, code: Code, pointer: Value, lanes: int) -> Value:
        return code.load(ir.VectorType(F32, lanes), pointer)

    def columns(self, code: Code, pointer: Value, lanes: int) -> Value:
        """The step of x at `pointer`, in every lane."""
        return code.splat(code.load(F32, pointer), lanes)

    def steps_of_row(self, code: Code, pointer: Value, count: int) -> Value:
        """So many steps of one row of x, as the panel has them: one lane each."""
        return code.load(ir.VectorType(F32, count), pointer)

    def rows_of_step(self, code: Code, pointer: Value, lanes: int) -> Value:
        """One step of `lanes` rows of x, from a panel that has them side by side."""
        return code.load(ir.VectorType(F32, lanes), pointer)

    def weight(self, code: Code, pointer: Value, lanes: int) -> Value:
        """One output's weights for a step, in every lane."""
        return self.columns(code, pointer, lanes)

    def multiply_add(self, code: Code, total: Value, x: Value, weights: Value) -> Value:
        """`total` + x · weights; fused where the machine does that faster."""
        return code.intrinsic(f"llvm.fmuladd.v{total.type.count}f32", total.type, x, weights, total)

    def take_in(self, code: Code, sums: list[Variable], x: Value, offset: int, weights: list[Value]) -> None:
        """Add to the sums of one row the step of x that lies `offset` entries behind `x`, times the weights."""
        columns = self.columns(code, code.element(x, self.panel, offset), weights[0].type.count // self.step)
        for total, vector in zip(sums, weights, strict=True):
            total.set(self.multiply_add(code, total.get(), columns, vector))

    def rounded(self, code: Code, sums: Value) -> Value:
        """A vector of sums as y has it."""
        return sums


@dataclass(frozen=True)
class WidenedBf16(Arithmetic):
    """bfloat16 in memory, widened to float32 when it is loaded: exact, on every machine."""

    name: str = "bf16-widened"
    stored: Any = I16
    stored_bytes: int = 2

    def to_panel(self, code: Code, value: Value) -> Value:
        return _widened(code, value)

    def weights(self, code: Code, pointer: Value, lanes: int) -> Value:
        return _widened(code, code.load(ir.VectorType(I16, lanes), pointer, align=2))

    def steps_of_row(self, code: Code, pointer: Value, count: int) -> Value:
        return _widened(code, code.load(ir.VectorType(I16, count), pointer, align=2))

    def weight(self, code: Code, pointer: Value, lanes: int) -> Value:
        return code.splat(_widened(code, code.load(I16, pointer, align=2)), lanes)

    def rounded(self, code: Code, sums: Value) -> Value:
        return _to_bf16(code, sums)


@dataclass(frozen=True)
class DotBf16(Arithmetic):
    """bfloat16 in pairs of columns, x86's `vdpbf16ps`. Subnormal numbers count as 0."""

    name: str = "bf16-dot"
    step: int = 2
    stored: Any = I16
    stored_bytes: int = 2
    panel: Any = I16
    panel_bytes: int = 2

    def weights(self, code: Code, pointer: Value, lanes: int) -> Value:
        return code.load(ir.VectorType(BF16, 2 * lanes), pointer)

    def steps_of_row(self, code: Code, pointer: Value, count: int) -> Value:
        return code.load(ir.VectorType(I32, count), pointer, align=2)

    def rows_of_step(self, code: Code, pointer: Value, lanes: int) -> Value:
        return code.load(ir.VectorType(BF16, 2 * lanes), pointer)

    def columns(self, code: Code, pointer: Value, lanes: int) -> Value:
        return code.ir.bitcast(code.splat(code.load(I32, pointer), lanes), ir.VectorType(BF16, 2 * lanes))

    def multiply_add(self, code: Code, total: Value, x: Value, weights: Value) -> Value:
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * total.type.count}"
        return code.intrinsic(name, total.type, total, x, weights)

    def take_in(self, code: Code, sums: list[Variable], x: Value, offset: int, weights: list[Value]) -> None:
        """The same; a pair of columns that meets one vector only is read by the multiplication itself.

        LLVM does not know that form for bfloat16, and a load of its own makes 16×16 blocks slower by a third.
        """
        if len(sums) > 1 or sums[0].type.count < 16:
            super().take_in(code, sums, x, offset, weights)
            return
        kind = sums[0].type
        instruction = f"vdpbf16ps {offset * 2}($2){{1to{kind.count}}}, $1, $0"
        function = ir.FunctionType(kind, [weights[0].type, POINTER, kind])
        operands = [weights[0], x, sums[0].get()]
        sums[0].set(code.ir.asm(function, instruction, "=v,v,r,0", operands, side_effect=False))

    def rounded(self, code: Code, sums: Value) -> Value:
        lanes = sums.type.count
        name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}"
        return code.ir.bitcast(code.intrinsic(name, ir.VectorType(BF16, lanes), sums), ir.VectorType(I16, lanes))


FP32 = Arithmetic()
WIDENED_BF16 = WidenedBf16()
DOT_BF16 = DotBf16()


def _like(value: Value, element: Any) -> Any:
    """`element`, or a vector of it if the value is a vector."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(kind: Any, value: int) -> Value:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _widened(code: Code, bits: Value) -> Value:
    """bfloat16 bits -> float32, which begins with the same 16 bits."""
    wide = _like(bits, I32)
    shifted = code.ir.shl(code.ir.zext(bits, wide), _constant(wide, 16))
    return code.ir.bitcast(shifted, _like(bits, F32))


def _to_bf16(code: Code, sums: Value) -> Value:
    """float32 -> bfloat16 bits, to nearest, ties to even; every NaN becomes the usual one."""
    kind = _like(sums, I32)
    bits = code.ir.bitcast(sums, kind)
    odd = code.ir.and_(code.ir.lshr(bits, _constant(kind, 16)), _constant(kind, 1))
    nearest = code.ir.add(code.ir.add(bits, _constant(kind, 0x7FFF)), odd)
    not_a_number = code.ir.fcmp_unordered("uno", sums, sums)
    chosen = code.ir.select(not_a_number, _constant(kind, 0x7FC00000), nearest)
    return code.ir.trunc(code.ir.lshr(chosen, _constant(kind, 16)), _like(sums, I16))
