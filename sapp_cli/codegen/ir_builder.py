"""A little language over llvmlite's IR builder: loops, variables, vectors in memory. No kernels here.

Variables live on the stack until LLVM's optimizer moves them to registers, which spares us phi nodes: a loop body reads
and sets them like any program does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from llvmlite import ir  # type: ignore[import-untyped]

Value: TypeAlias = Any
"""An SSA value; llvmlite has no types of its own."""

F32 = ir.FloatType()
I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
VOID = ir.VoidType()
POINTER = ir.PointerType()


class BFloat16(ir.types.Type):  # type: ignore[misc]
    """LLVM's `bfloat`, which llvmlite does not define."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16)

    def __hash__(self) -> int:
        return hash(BFloat16)


BF16 = BFloat16()


class Variable:
    """A value that may be set again."""

    def __init__(self, code: Code, value: Value) -> None:
        self._code = code
        self.type = value.type
        with code.ir.goto_entry_block():  # in a loop it would take new stack every time
            self._place = code.ir.alloca(value.type)
        self.set(value)

    def get(self) -> Value:
        return self._code.ir.load(self._place, typ=self.type)

    def set(self, value: Value) -> None:
        self._code.ir.store(value, self._place)


class Code:
    """The body of a function under construction. `ir` is llvmlite's builder, for plain arithmetic."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.ir = ir.IRBuilder(function.append_basic_block("entry"))

    def number(self, value: int) -> Value:
        """A 64-bit integer; all sizes and offsets are."""
        return ir.Constant(I64, value)

    def product(self, *factors: Value | int) -> Value:
        result = self._value(factors[0])
        for factor in factors[1:]:
            result = self.ir.mul(result, self._value(factor))
        return result

    def sum(self, *terms: Value | int) -> Value:
        result = self._value(terms[0])
        for term in terms[1:]:
            result = self.ir.add(result, self._value(term))
        return result

    def minimum(self, first: Value, second: Value | int) -> Value:
        other = self._value(second)
        return self.ir.select(self.ir.icmp_signed("<", first, other), first, other)

    def element(self, pointer: Value, kind: Any, index: Value | int) -> Value:
        """Address of entry `index` of an array of `kind`."""
        return self.ir.gep(pointer, [self._value(index)], source_etype=kind)

    def load(self, kind: Any, pointer: Value, align: int = 4) -> Value:
        return self.ir.load(pointer, typ=kind, align=align)

    def store(self, value: Value, pointer: Value, align: int = 4) -> None:
        self.ir.store(value, pointer, align=align)

    def stack(self, kind: Any, count: int) -> Value:
        """Address of an array on the stack, of this function whatever loop it is used in."""
        with self.ir.goto_entry_block():
            place = self.ir.alloca(ir.ArrayType(kind, count))
        place.type = POINTER  # llvmlite still gives it a typed one
        return place

    def index(self, pointer: Value, position: Value | int) -> Value:
        """Entry `position` of an array of int32, as a 64-bit number."""
        return self.ir.sext(self.load(I32, self.element(pointer, I32, position)), I64)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector with `scalar` in every lane."""
        vector = ir.VectorType(scalar.type, lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.ir.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.ir.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def transposed(self, rows: list[Value]) -> list[Value]:
        """The matrix whose rows are these vectors, turned: as many vectors, one column of it after the other.

        Both numbers are powers of two. Interleaving the upper with the lower half of the rows moves one bit of the row's
        number behind the bits of the column's; as many times as a row's number has bits, and they have changed places.
        """
        lanes, half = rows[0].type.count, len(rows) // 2
        order = [lane // 2 + lane % 2 * lanes for lane in range(2 * lanes)]
        for _ in range(half.bit_length()):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [self.shuffled(*pair, part) for pair in pairs for part in (order[:lanes], order[lanes:])]
        return rows

    def shuffled(self, first: Value, second: Value, order: list[int]) -> Value:
        """The entries of two vectors, one behind the other, that `order` names."""
        return self.ir.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(order)), order))

    def part(self, vector: Value, start: int, count: int) -> Value:
        """`count` lanes of a vector."""
        return self.shuffled(vector, vector, list(range(start, start + count)))

    def added_up(self, vector: Value) -> Value:
        """The sum of the lanes, halves onto halves; their number is a power of two. A scalar is its own sum."""
        lanes = vector.type.count if isinstance(vector.type, ir.VectorType) else 1
        while lanes > 2:
            lanes //= 2
            vector = self.ir.fadd(self.part(vector, 0, lanes), self.part(vector, lanes, lanes))
        if lanes == 1:
            return vector
        first, second = (self.ir.extract_element(vector, ir.Constant(I32, lane)) for lane in range(2))
        return self.ir.fadd(first, second)

    def store_lanes(self, value: Value, pointer: Value, lanes: Value) -> None:
        """Write the lanes whose mask is set, and touch no memory behind the others."""
        kind = value.type
        name = f"llvm.masked.store.v{kind.count}{'f32' if kind.element == F32 else 'i16'}.p0"
        self.intrinsic(name, VOID, value, pointer, ir.Constant(I32, 2), lanes)

    def first_lanes(self, count: Value, lanes: int) -> Value:
        """A mask of the first `count` of so many lanes."""
        numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
        return self.ir.icmp_signed("<", numbers, self.splat(count, lanes))

    def prefetch_for_writing(self, pointer: Value) -> None:
        """Begin to bring the cache line at `pointer` into the cache."""
        writing, most_local, data = (ir.Constant(I32, number) for number in (1, 3, 1))
        self.intrinsic("llvm.prefetch.p0", VOID, pointer, writing, most_local, data)

    def intrinsic(self, name: str, result: Any, *arguments: Value) -> Value:
        """A call of LLVM's built-in function `name`."""
        return self.ir.call(declare(self.function.module, name, result, [a.type for a in arguments]), arguments)

    @contextmanager
    def loop(self, stop: Value | int, start: Value | int = 0, step: int = 1) -> Iterator[Value]:
        """`for i in range(start, stop, step)`; gives i."""
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "body", "after"))
        counter = Variable(self, self._value(start))
        limit = self._value(stop)
        self.ir.branch(head)
        self.ir.position_at_end(head)
        current = counter.get()
        self.ir.cbranch(self.ir.icmp_signed("<", current, limit), body, after)
        self.ir.position_at_end(body)
        yield current
        counter.set(self.ir.add(current, self.number(step)))
        self.ir.branch(head)
        self.ir.position_at_end(after)

    def switch(self, value: Value, cases: Mapping[int, Callable[[], object]]) -> None:
        """Run the case that equals `value`, none where there is no such case."""
        after = self.function.append_basic_block("after")
        switch = self.ir.switch(value, after)
        for number, case in cases.items():
            block = self.function.append_basic_block("case")
            switch.add_case(self.number(number), block)
            self.ir.position_at_end(block)
            case()
            self.ir.branch(after)
        self.ir.position_at_end(after)

    def _value(self, number: Value | int) -> Value:
        return self.number(number) if isinstance(number, int) else number


def declare(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """The function `name` of the module, declared there at first use."""
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def define(module: Any, name: str, arguments: dict[str, Any], *, private: bool = False) -> tuple[Code, dict[str, Any]]:
    """(body, its arguments by name) of a new function that returns nothing."""
    function = ir.Function(module, ir.FunctionType(VOID, list(arguments.values())), name)
    if private:
        function.linkage = "internal"
        function.attributes.add("noinline")  # what is called in a few places stays one piece of code
    for value, argument in zip(function.args, arguments, strict=True):
        value.name = argument
        if value.type == POINTER:
            value.add_attribute("noalias")
    return Code(function), dict(zip(arguments, function.args, strict=True))


def define_team(module: Any, entry: str, parts_place: int) -> None:
    """`ENTRY_team(job)` beside `entry(job, part)`, for each thread of an OpenMP team; the job says how many parts there are.

    A thread takes every n-th part: the team may be smaller than there are parts.
    """
    code, args = define(module, f"{entry}_team", {"job": POINTER})
    number, count = (
        code.ir.sext(code.ir.call(declare(module, name, I32, []), []), I64)
        for name in ("omp_get_thread_num", "omp_get_num_threads")
    )
    parts = code.load(I64, code.element(args["job"], I64, parts_place), align=8)
    rounds = code.ir.sdiv(code.sum(parts, code.ir.sub(count, code.number(1))), count)
    with code.loop(rounds) as turn:
        part = code.sum(number, code.product(turn, count))
        with code.ir.if_then(code.ir.icmp_signed("<", part, parts)):
            code.ir.call(module.get_global(entry), [args["job"], part])
    code.ir.ret_void()
