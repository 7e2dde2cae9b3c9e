"""MXFP4 and NVFP4: 4-bit floating-point weights (E2M1) with 8-bit scales.

=====  =====  ==========================================  ==============================================
type   bytes  fields                                      weight
=====  =====  ==========================================  ==============================================
MXFP4  17     e u8 (E8M0), qs u8[16]                      ``2**(e-128) * values[q]``, 32 weights
NVFP4  36     d u8[4] (E4M3 without sign), qs u8[32]      ``d/2 * values[q]``, four sub-blocks of 16
=====  =====  ==========================================  ==============================================

``values`` are twice the E2M1 numbers, hence the halves. MXFP4: low nibbles are weights 0..15, high ones 16..31.
NVFP4: byte ``8s + l`` holds weights ``16s + l`` (low) and ``16s + 8 + l``; scale bytes 0 and 127 mean zero.

Source: llama.cpp ``ggml/src/ggml-common.h``, ``ggml-impl.h`` and ``ggml-quants.c``; OCP Microscaling Formats (MX) 1.0.
"""

from __future__ import annotations

import numpy as np

from .floats import F32, U8
from .legacy import nibbles16
from .tables import E2M1_VALUES, e8m0_half, ue4m3_half

_VALUES = np.array(E2M1_VALUES, np.float32)


def mxfp4(blocks: U8) -> F32:
    """Return the weights ``[n_block, 32]``."""
    values: F32 = _VALUES[nibbles16(blocks[:, 1:])]
    return e8m0_half(blocks[:, :1]) * values


def nvfp4(blocks: U8) -> F32:
    """Return the weights ``[n_block, 64]``."""
    qs = blocks[:, 4:].reshape(-1, 4, 8)
    q = np.concatenate([qs & 0x0F, qs >> 4], axis=2)  # [n_block, 4, 16]
    values: F32 = _VALUES[q]
    return (ue4m3_half(blocks[:, :4])[..., None] * values).reshape(-1, 64)
