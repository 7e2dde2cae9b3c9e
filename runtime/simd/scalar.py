"""Single numbers in Numba code: memory at integer addresses, atomics, calls through addresses."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .lower import ELEMENTS, F32, F64, I8, I16, I32, I64
from .vector import float32, float64, int64, operation, void


@operation(int64(int64))
def load_i64(low, address):
    """Load 8 bytes."""
    return low.load(address, I64, 8)


@operation(void(int64, int64))
def store_i64(low, address, value):
    """Store 8 bytes."""
    low.store(address, value, 8)


@operation(int64(int64))
def load_i32(low, address):
    """Load 4 bytes, sign-extended."""
    return low.b.sext(low.load(address, I32), I64)


@operation(void(int64, int64))
def store_i32(low, address, value):
    """Store the low 4 bytes."""
    low.store(address, low.b.trunc(value, I32))


@operation(void(int64, int64))
def store_i16(low, address, value):
    """Store the low 2 bytes."""
    low.store(address, low.b.trunc(value, I16), 2)


@operation(int64(int64))
def load_u16(low, address):
    """Load 2 bytes, zero-extended."""
    return low.b.zext(low.load(address, I16), I64)


@operation(int64(int64))
def load_u8(low, address):
    """Load 1 byte, zero-extended."""
    return low.b.zext(low.load(address, I8), I64)


@operation(float32(int64))
def load_f32(low, address):
    """Load one f32."""
    return low.load(address, F32)


@operation(void(int64, float32))
def store_f32(low, address, value):
    """Store one f32."""
    low.store(address, value)


@operation(float64(int64))
def load_f64(low, address):
    """Load one f64."""
    return low.load(address, F64)


@operation(float32(int64))
def load_f16(low, address):
    """Load one f16 as f32."""
    halves = ir.VectorType(ELEMENTS["f16"], 1)
    return low.b.extract_element(low.half_to_float(low.load(address, halves)), ir.Constant(I32, 0))


@operation(void(int64, float32))
def store_f16(low, address, value):
    """Store one f32 as f16, rounded to nearest even."""
    low.store(address, low.float_to_half(low.splat(value, ir.VectorType(F32, 1))), 2)


@operation(int64(int64, int64))
def smaller(low, x, y):
    """Return the smaller integer (Numba's own ``min`` is compiled for this process)."""
    return low.b.select(low.b.icmp_signed("<", x, y), x, y)


@operation(int64(int64, int64))
def larger(low, x, y):
    """Return the larger integer."""
    return low.b.select(low.b.icmp_signed(">", x, y), x, y)


@operation(int64(int64, int64))
def atomic_add(low, address, value):
    """Add to 8 bytes atomically; return the value before."""
    return low.b.atomic_rmw("add", low.b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@operation(int64(int64))
def atomic_load(low, address):
    """Load 8 bytes atomically."""
    return low.b.load_atomic(low.b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@operation(void(int64, int64))
def atomic_store(low, address, value):
    """Store 8 bytes atomically, visible after everything stored before."""
    low.b.store_atomic(value, low.b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@operation(void())
def pause(low):
    """Tell the core that this is a spin loop."""
    if low.target.is_arm:
        low.call("llvm.aarch64.isb", ir.VoidType(), ir.Constant(I32, 15))  # 'yield' is nearly a nop there
    else:
        low.call("llvm.x86.sse2.pause", ir.VoidType())


@operation(void(int64, int64, int64, int64, int64))
def call_kernel(low, function, record, batch, worker, n_worker):
    """Call a kernel through its address."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
    low.b.call(low.b.inttoptr(function, kind.as_pointer()), [record, batch, worker, n_worker])


@operation(int64(int64))
def call_address(low, function):
    """Call a C function without arguments through its address."""
    kind = ir.FunctionType(I64, [])
    return low.b.call(low.b.inttoptr(function, kind.as_pointer()), [])


def stack_bytes(n_bytes: int) -> Any:
    """Return an operation that gives the address of ``n_bytes`` of the caller's stack, 64-byte aligned."""

    @operation(int64())
    def stack(low):
        with low.b.goto_entry_block():
            area = low.b.alloca(ir.ArrayType(I8, n_bytes))
            area.align = 64
        return low.b.ptrtoint(area, I64)

    return stack
