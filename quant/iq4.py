"""IQ4_NL and IQ4_XS: 4-bit indices into a table of 16 values that are not evenly spaced.

======  =====  =====================================================================  ============================
type    bytes  fields                                                                 weight
======  =====  =====================================================================  ============================
IQ4_NL  18     d f16, qs u8[16]                                                       ``d * values[q]``, 32
IQ4_XS  136    d f16, scales_h u16, scales_l u8[4], qs u8[128]                        ``d * (sc-32) * values[q]``
======  =====  =====================================================================  ============================

IQ4_XS has eight sub-blocks of 32. Scale s: low four bits in nibble s of ``scales_l``, upper two in bits ``2s`` of
``scales_h``. Every 16 bytes of ``qs`` hold 32 weights: low nibbles first, then high ones.

Source: llama.cpp ``ggml/src/ggml-common.h`` and ``ggml-quants.c``.
"""

from __future__ import annotations

import numpy as np

from .floats import F32, U8, half_at
from .legacy import nibbles16
from .tables import IQ4_VALUES

_VALUES = np.array(IQ4_VALUES, np.float32)


def iq4_nl(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    return half_at(blocks, 0) * _VALUES[nibbles16(blocks[:, 2:])]


def iq4_xs(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    low, high = blocks[:, 4:8], blocks[:, 2:4]
    sc = np.stack([low & 0x0F, low >> 4], axis=2).reshape(-1, 8)
    sc |= ((high[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).reshape(-1, 8) << 4
    scale = half_at(blocks, 0) * (sc.astype(np.int8) - np.int8(32)).astype(np.float32)
    q = nibbles16(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    return (scale[..., None] * _VALUES[q]).reshape(-1, 256)
