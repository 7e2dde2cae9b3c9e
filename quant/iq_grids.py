"""Codebooks of the IQ1, IQ2 and IQ3 types: rows of 4 or 8 small integers that an index selects.

The tables are those of the ``gguf`` package, imported on first use: it costs 0.2 s and few models need it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..formats.ggml_types import GgmlType

GRID_SHAPES: dict[GgmlType, tuple[int, int]] = {
    GgmlType.IQ1_S: (2048, 8),
    GgmlType.IQ1_M: (2048, 8),
    GgmlType.IQ2_XXS: (256, 8),
    GgmlType.IQ2_XS: (512, 8),
    GgmlType.IQ2_S: (1024, 8),
    GgmlType.IQ3_XXS: (256, 4),
    GgmlType.IQ3_S: (512, 4),
}


@cache
def grid(ggml_type: GgmlType) -> NDArray[np.int8]:
    """Return the codebook of a type, ``i8 [n_entry, 4 or 8]``, read-only.

    Raises:
        RuntimeError: the installed ``gguf`` package stores its tables in another way.
    """
    from gguf import quants  # here: slow, and only these types need it

    table = getattr(quants, ggml_type.name)
    text = np.frombuffer(table.grid_hex, np.uint8)
    packed = np.frombuffer(bytes.fromhex(text.tobytes().decode("ascii")), np.uint8)
    n_bit = (len(table.grid_map) - 1).bit_length()
    shifts = np.arange(0, 8, n_bit if n_bit != 3 else 4, dtype=np.uint8)
    index = (packed[:, None] >> shifts) & ((1 << n_bit) - 1)
    shape = GRID_SHAPES[ggml_type]
    if index.size != shape[0] * shape[1]:
        raise RuntimeError(f"gguf.quants.{ggml_type.name} has {index.size} grid values, expected {shape}")
    values: NDArray[np.int8] = np.array(table.grid_map, np.int8)[index].reshape(shape)
    values.flags.writeable = False
    return values


@cache
def sign_masks() -> NDArray[np.uint8]:
    """Return the 128 sign bytes of IQ2_XXS, IQ2_XS and IQ3_XXS: seven bits and their parity on top."""
    bits = np.arange(128, dtype=np.uint8)
    return bits | ((np.bitwise_count(bits) & 1) << 7).astype(np.uint8)
