"""Vector values in Numba code: types, operations, and functions that LLVM inlines.

Kernels are written with these and never mention an instruction set. Addresses are plain ``int64``.
A ``Vec`` is a first-class Numba value whose representation is an LLVM vector (``count == 1``) or an
array of them, which LLVM takes apart into registers.

Every operation is exactly rounded or exact, so that every target gives the same bits; comparisons
are written as compare-and-select because the machines' own minima differ in their NaN rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from .isa import TARGETS, Target
from .lower import ELEMENTS, F32, F32X16, F64, I8, I16, I32, I32X16, I64, Lowering, constant


class Vec(types.Type):
    """``count`` LLVM vectors of ``lanes`` elements each."""

    def __init__(self, element: str, lanes: int, count: int = 1) -> None:
        self.element, self.lanes, self.count = element, lanes, count
        super().__init__(name=f"Vec({element}x{lanes}x{count})")

    @property
    def llvm(self) -> ir.Type:
        """The LLVM type of the value."""
        vector = ir.VectorType(ELEMENTS[self.element], self.lanes)
        return vector if self.count == 1 else ir.ArrayType(vector, self.count)


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16, i32x16 = Vec("f32", 16), Vec("i32", 16)
int64, float32, float64, void = types.int64, types.float32, types.float64, types.void


def lowering(context: Any, builder: ir.IRBuilder) -> Lowering:
    """Return the lowering for the target that ``context`` builds (the compiler puts it there)."""
    target: Target = getattr(context, "llmrun_target", None) or TARGETS["x86-v2"]
    return Lowering(builder, target)


def operation(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a Numba function of a lowering: ``f(low, *llvm values) -> llvm value``.

    The decorated function's parameter names after the first are the Numba function's, as many as the signature takes.
    """

    def decorate(lower: Callable[..., Any]) -> Any:
        names = lower.__code__.co_varnames[1 : 1 + len(signature.args)]

        def codegen(context: Any, builder: ir.IRBuilder, _sig: Any, args: Any) -> Any:
            result = lower(lowering(context, builder), *args)
            return context.get_dummy_value() if signature.return_type == void else result

        return _intrinsic_with_names(lower.__name__, names, signature, codegen)

    return decorate


def _intrinsic_with_names(name: str, names: tuple[str, ...], signature: Any, codegen: Any) -> Any:
    # Numba matches call arguments by the typing function's own parameter names, so it needs real ones.
    namespace = {"signature": signature, "codegen": codegen}
    exec(f"def {name}(typing_context, {', '.join(names)}): return signature, codegen", namespace)
    return intrinsic(namespace[name])


def device(signature: Any, *, is_inlined: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Mark a Python function that kernels call: compiled once per target, inlined by LLVM.

    Unlike ``@njit(inline="always")`` it is typed once, not at every use. ``is_inlined`` false keeps one
    copy of a large function that several places call.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
            from .compiler import kernel_flags  # here: the compiler imports this module's types

            compiled = context.compile_subroutine(builder, function, sig, flags=kernel_flags())
            if not is_inlined:
                context.llmrun_outlined.add(compiled.fndesc.llvm_func_name)
            return context.call_internal(builder, compiled.fndesc, sig, args)

        result = _intrinsic_with_names(function.__name__, names, signature, codegen)
        result.python = function
        return result

    return decorate


# ---- vectors in memory ------------------------------------------------------------------------


@operation(f32x16(int64))
def load_f32x16(low, address):
    """Load 16 f32."""
    return low.load(address, F32X16)


@operation(void(int64, f32x16))
def store_f32x16(low, address, value):
    """Store 16 f32."""
    low.store(address, value)


@operation(f32x16(int64))
def load_f16x16(low, address):
    """Load 16 f16 as f32."""
    return low.half_to_float(low.load(address, ir.VectorType(ELEMENTS["f16"], 16)))


@operation(void(int64, f32x16))
def store_f16x16(low, address, value):
    """Store 16 f32 as f16, rounded to nearest even."""
    low.store(address, low.float_to_half(value))


@operation(f32x16(int64))
def load_bf16x16(low, address):
    """Load 16 bf16 as f32."""
    wide = low.b.zext(low.load(address, ir.VectorType(I16, 16)), I32X16)
    return low.b.bitcast(low.b.shl(wide, constant(I32X16, 16)), F32X16)


@operation(i32x16(int64))
def load_u8x16(low, address):
    """Load 16 unsigned bytes as i32."""
    return low.b.zext(low.load(address, ir.VectorType(I8, 16)), I32X16)


@operation(i32x16(int64))
def load_i8x16(low, address):
    """Load 16 signed bytes as i32."""
    return low.b.sext(low.load(address, ir.VectorType(I8, 16)), I32X16)


@operation(void(int64, i32x16))
def store_i8x16(low, address, value):
    """Store the low byte of each of 16 lanes."""
    low.store(address, low.b.trunc(value, ir.VectorType(I8, 16)))


@operation(f32x16(int64))
def broadcast_f32(low, address):
    """Load one f32 into all lanes."""
    return low.broadcast(address, F32X16)


@operation(void(int64))
def prefetch(low, address):
    """Ask for the cache line at ``address``; any address is allowed."""
    low.prefetch(address)


# ---- f32x16 -----------------------------------------------------------------------------------


@operation(f32x16(float32))
def splat(low, scalar):
    """Return the scalar in all lanes."""
    return low.splat(scalar, F32X16)


@operation(f32x16(f32x16, f32x16))
def add(low, x, y):
    """Return ``x + y``."""
    return low.b.fadd(x, y)


@operation(f32x16(f32x16, f32x16))
def sub(low, x, y):
    """Return ``x - y``."""
    return low.b.fsub(x, y)


@operation(f32x16(f32x16, f32x16))
def mul(low, x, y):
    """Return ``x * y``."""
    return low.b.fmul(x, y)


@operation(f32x16(f32x16, f32x16))
def div(low, x, y):
    """Return ``x / y``."""
    return low.b.fdiv(x, y)


@operation(f32x16(f32x16, f32x16, f32x16))
def fma(low, x, y, z):
    """Return ``x * y + z``, rounded once."""
    return low.fma(x, y, z)


@operation(f32x16(f32x16, f32x16))
def maximum(low, x, y):
    """Return ``x if x > y else y`` per lane."""
    return low.b.select(low.b.fcmp_ordered(">", x, y), x, y)


@operation(f32x16(f32x16, f32x16))
def minimum(low, x, y):
    """Return ``x if x < y else y`` per lane."""
    return low.b.select(low.b.fcmp_ordered("<", x, y), x, y)


@operation(f32x16(f32x16))
def absolute(low, x):
    """Return ``|x|``."""
    bits = low.b.and_(low.b.bitcast(x, I32X16), constant(I32X16, 0x7FFFFFFF))
    return low.b.bitcast(bits, F32X16)


@operation(f32x16(f32x16))
def hadamard(low, x):
    """Return the lanes times the Hadamard matrix of 16 rows, without its factor of 1/4."""
    for step in (8, 4, 2, 1):
        lanes = range(16)
        other = low.b.shuffle_vector(x, x, constant(ir.VectorType(I32, 16), [lane ^ step for lane in lanes]))
        is_second = ir.Constant(ir.VectorType(ir.IntType(1), 16), [bool(lane & step) for lane in lanes])
        x = low.b.select(is_second, low.b.fsub(other, x), low.b.fadd(x, other))
    return x


@operation(f32x16(f32x16, f32x16, f32x16, f32x16))
def where_less(low, x, y, if_less, otherwise):
    """Return ``if_less`` where ``x < y``, else ``otherwise`` (also where either is NaN)."""
    return low.b.select(low.b.fcmp_ordered("<", x, y), if_less, otherwise)


@operation(i32x16(f32x16))
def round_to_i32(low, x):
    """Round to the nearest even integer; |x| must be below 2**31."""
    return low.b.fptosi(low.call("llvm.roundeven.v16f32", F32X16, x), I32X16)


@operation(i32x16(f32x16))
def to_i32(low, x):
    """Convert whole numbers; |x| must be below 2**31."""
    return low.b.fptosi(x, I32X16)


@operation(f32x16(f32x16))
def round_even(low, x):
    """Round to the nearest even integer, as f32."""
    return low.call("llvm.roundeven.v16f32", F32X16, x)


@operation(float32(f32x16))
def sum_lanes(low, x):
    """Return the sum of the lanes, halves added until one is left."""
    n = 16
    while n > 1:
        n //= 2
        x = low.b.fadd(low.part(x, 0, n), low.part(x, 1, n))
    return low.b.extract_element(x, ir.Constant(I32, 0))


@operation(float32(f32x16))
def max_lanes(low, x):
    """Return the largest lane (no NaN)."""
    n = 16
    while n > 1:
        n //= 2
        left, right = low.part(x, 0, n), low.part(x, 1, n)
        x = low.b.select(low.b.fcmp_ordered(">", left, right), left, right)
    return low.b.extract_element(x, ir.Constant(I32, 0))


@operation(float32(f32x16))
def first_lane(low, x):
    """Return lane 0."""
    return low.b.extract_element(x, ir.Constant(I32, 0))


@operation(f32x16(int64))
def load_even(low, address):
    """Load 32 f32 and return those at even places."""
    both = low.load(address, ir.VectorType(F32, 32))
    return low.b.shuffle_vector(both, both, constant(ir.VectorType(I32, 16), list(range(0, 32, 2))))


@operation(f32x16(int64))
def load_odd(low, address):
    """Load 32 f32 and return those at odd places."""
    both = low.load(address, ir.VectorType(F32, 32))
    return low.b.shuffle_vector(both, both, constant(ir.VectorType(I32, 16), list(range(1, 32, 2))))


@operation(void(int64, f32x16, f32x16))
def store_interleaved(low, address, even, odd):
    """Store 32 f32, one from each vector in turn."""
    order = [k for i in range(16) for k in (i, i + 16)]
    low.store(address, low.b.shuffle_vector(even, odd, constant(ir.VectorType(I32, 32), order)))


@operation(void(int64, int64, f32x16))
def store_halves_strided(low, address, step, value):
    """Store 16 f32 as f16, ``step`` bytes apart."""
    bits = low.b.bitcast(low.float_to_half(value), ir.VectorType(I16, 16))
    for i in range(16):
        offset = low.b.mul(step, ir.Constant(I64, i))
        low.store(low.b.add(address, offset), low.b.extract_element(bits, ir.Constant(I32, i)))


@operation(f32x16(int64, int64))
def load_strided(low, address, step):
    """Load 16 f32, ``step`` bytes apart."""
    result = ir.Constant(F32X16, ir.Undefined)
    for i in range(16):
        item = low.load(low.b.add(address, low.b.mul(step, ir.Constant(I64, i))), F32)
        result = low.b.insert_element(result, item, ir.Constant(I32, i))
    return result


@operation(void(int64, int64, f32x16))
def store_strided(low, address, step, value):
    """Store 16 f32, ``step`` bytes apart."""
    for i in range(16):
        offset = low.b.mul(step, ir.Constant(I64, i))
        low.store(low.b.add(address, offset), low.b.extract_element(value, ir.Constant(I32, i)))


@operation(void(int64, int64, i32x16))
def store_strided_i8(low, address, step, value):
    """Store the low byte of each of 16 lanes, ``step`` bytes apart."""
    small = low.b.trunc(value, ir.VectorType(I8, 16))
    for i in range(16):
        offset = low.b.mul(step, ir.Constant(I64, i))
        low.store(low.b.add(address, offset), low.b.extract_element(small, ir.Constant(I32, i)))


@operation(f32x16(f32x16))
def round_half(low, x):
    """Return the nearest half-precision numbers, as f32."""
    return low.half_to_float(low.float_to_half(x))


@operation(f32x16(int64, int64, int64, f32x16, f32x16))
def where_between(low, base, start, stop, inside, outside):
    """Return ``inside`` in lanes i with ``start <= base + i < stop``, ``outside`` elsewhere."""
    index = low.b.add(low.splat(low.b.trunc(base, I32), I32X16), constant(I32X16, list(range(16))))
    first, last = (low.splat(low.b.trunc(v, I32), I32X16) for v in (start, stop))
    is_inside = low.b.and_(low.b.icmp_signed(">=", index, first), low.b.icmp_signed("<", index, last))
    return low.b.select(is_inside, inside, outside)


@operation(float64(float64))
def round_f64(low, x):
    """Round to the nearest even integer."""
    return low.call("llvm.roundeven.f64", F64, x)


@operation(float32(float64))
def to_single(low, x):
    """Round f64 to f32."""
    return low.b.fptrunc(x, F32)


@operation(float32(float32))
def sqrt(low, x):
    """Return the correctly rounded square root of a scalar."""
    return low.call("llvm.sqrt.f32", F32, x)


# ---- i32x16 -----------------------------------------------------------------------------------


@operation(i32x16(int64))
def splat_i32(low, scalar):
    """Return the scalar's low 32 bits in all lanes."""
    return low.splat(low.b.trunc(scalar, I32), I32X16)


@operation(i32x16(i32x16, i32x16))
def add_i32(low, x, y):
    """Return ``x + y``."""
    return low.b.add(x, y)


@operation(i32x16(i32x16, i32x16))
def sub_i32(low, x, y):
    """Return ``x - y``."""
    return low.b.sub(x, y)


@operation(i32x16(i32x16, i32x16))
def or_i32(low, x, y):
    """Return ``x | y``."""
    return low.b.or_(x, y)


@operation(i32x16(i32x16, int64))
def and_i32(low, x, mask):
    """Return ``x & mask``."""
    return low.b.and_(x, low.splat(low.b.trunc(mask, I32), I32X16))


@operation(i32x16(i32x16, int64))
def shift_right(low, x, count):
    """Return ``x >> count``, zeros shifted in."""
    return low.b.lshr(x, low.splat(low.b.trunc(count, I32), I32X16))


@operation(i32x16(i32x16, int64))
def shift_left(low, x, count):
    """Return ``x << count``."""
    return low.b.shl(x, low.splat(low.b.trunc(count, I32), I32X16))


@operation(f32x16(i32x16))
def to_f32(low, x):
    """Convert signed lanes to f32."""
    return low.b.sitofp(x, F32X16)


@operation(f32x16(i32x16))
def as_f32(low, x):
    """Return the same bits as f32."""
    return low.b.bitcast(x, F32X16)


@operation(int64(i32x16))
def sum_lanes_i32(low, x):
    """Return the sum of the lanes."""
    n = 16
    while n > 1:
        n //= 2
        x = low.b.add(low.part(x, 0, n), low.part(x, 1, n))
    return low.b.sext(low.b.extract_element(x, ir.Constant(I32, 0)), I64)


@operation(int64(i32x16))
def any_sign(low, x):
    """Return whether bit 15 or bit 31 of any lane is set, as 0 or another number."""
    n = 16
    while n > 1:
        n //= 2
        x = low.b.or_(low.part(x, 0, n), low.part(x, 1, n))
    one = low.b.extract_element(x, ir.Constant(I32, 0))
    return low.b.zext(low.b.and_(one, ir.Constant(I32, 0x80008000 - (1 << 32))), I64)
