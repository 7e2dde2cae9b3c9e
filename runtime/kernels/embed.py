"""Token embeddings: rows of a table in the file's own format, looked up and dequantised.

The table stays where it is, in the mapped file; ``quant/twin_*.py`` say what its bytes mean. Rows without a
token (given vectors) are left as they are.

Record words (after the two that all share): 2 blocks of a row, 3 table, 4 row bytes of the table, 5 y, 6 row
bytes of y, 7 columns, 8 columns of y with padding (filled with zeros).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from ...formats.ggml_types import BLOCK, GgmlType
from ...quant.twins import twin
from ..simd.compiler import Kernel
from ..simd.isa import Target
from ..simd.scalar import load_i64, store_f32
from ..simd.vector import device, float32, int64, void
from .layout import ROW_BYTES, ROW_TOKEN, ROWS
from .rows import first_unit

_OP = void(*[int64] * 4)


def array_at(element: Any) -> Any:
    """Return an operation that makes a Numba array ``[n, width]`` of memory at an address."""
    array_type = types.Array(element, 2, "C")

    @intrinsic
    def view(typing_context, address, n, width):
        def codegen(context, builder, signature, arguments):
            start, rows, columns = arguments
            item = context.get_abi_sizeof(context.get_data_type(element))
            size = ir.Constant(rows.type, item)
            result = make_array(array_type)(context, builder)
            populate_array(
                result,
                data=builder.inttoptr(start, result.data.type),
                shape=[rows, columns],
                strides=[builder.mul(columns, size), size],
                itemsize=size,
                meminfo=None,
            )
            return result._getvalue()

        return array_type(int64, int64, int64), codegen

    return view


_bytes_at, _floats_at = array_at(types.uint8), array_at(float32)


def embed_kernel(name: str, _target: Target) -> Kernel:
    """Return the look-up of a table of one GGML type."""
    ggml_type = GgmlType[name]
    n_weight, n_byte = BLOCK[ggml_type]
    # Compiled with the kernel, for its target.
    dequantize = device(void(types.Array(types.uint8, 2, "C"), types.Array(float32, 2, "C")))(twin(ggml_type))

    def embed(record, batch, worker, n_worker):
        n_tok, n_block = load_i64(batch + load_i64(record + 8)), load_i64(record + 16)
        table, row_bytes = load_i64(record + 24), load_i64(record + 32)
        for tok in range(first_unit(n_tok, worker, n_worker), first_unit(n_tok, worker + 1, n_worker)):
            token_id = load_i64(load_i64(batch + ROWS) + ROW_BYTES * tok + ROW_TOKEN)
            if token_id >= 0:
                y = load_i64(record + 40) + tok * load_i64(record + 48)
                blocks = _bytes_at(table + token_id * row_bytes, n_block, n_byte)
                dequantize(blocks, _floats_at(y, n_block, n_weight))
                for i in range(load_i64(record + 56), load_i64(record + 64)):
                    store_f32(y + 4 * i, float32(0))

    return Kernel(f"embed_{name.lower()}", _OP, embed)
