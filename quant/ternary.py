"""TQ1_0 and TQ2_0: weights of -1, 0 or 1 times a scale, 256 a block.

=====  =====  ==========================================  ==============================================
type   bytes  fields                                      weight
=====  =====  ==========================================  ==============================================
TQ1_0  54     qs u8[48], qh u8[4], d f16                  ``d * (t - 1)``, five (qh: four) trits a byte
TQ2_0  66     qs u8[64], d f16                            ``d * (q - 1)``, four 2-bit q a byte (0..3)
=====  =====  ==========================================  ==============================================

* TQ1_0: a byte is a fraction of 256 whose base-3 digits are the trits, the first one in front: digit j is
  ``((byte * 3**j mod 256) * 3) >> 8``. Digit j of byte l: weight ``32j + l`` (l < 32), ``160 + 16j + l - 32``
  (l < 48), of qh byte l: ``240 + 4j + l``.
* TQ2_0: bits 2j of byte ``32h + l`` belong to weight ``128h + 32j + l``.

Source: llama.cpp ``ggml/src/ggml-common.h`` and ``ggml-quants.c``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .floats import F32, U8, half_at

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
_CRUMBS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def _trits(packed: U8, n: int) -> U8:
    """Return the first ``n`` base-3 digits of each byte, digit after digit: ``[n_block, n * n_bytes]``."""
    shifted = packed[:, None, :] * _POWERS[:n]  # modulo 256: earlier digits fall off
    return ((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(packed), -1)


def tq1_0_quants(blocks: U8) -> NDArray[Any]:
    """Return the trits ``[n_block, 256]``, 0 to 2."""
    return np.concatenate(
        [_trits(blocks[:, 0:32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4)], axis=1
    )


def tq2_0_quants(blocks: U8) -> NDArray[Any]:
    """Return the 2-bit quants ``[n_block, 256]``, 0 to 3."""
    return ((blocks[:, :64].reshape(-1, 2, 1, 32) >> _CRUMBS) & 3).reshape(-1, 256)


def tq1_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    return half_at(blocks, 52) * (tq1_0_quants(blocks).astype(np.int8) - np.int8(1)).astype(np.float32)


def tq2_0(blocks: U8) -> F32:
    """Return the weights ``[n_block, 256]``."""
    return half_at(blocks, 64) * (tq2_0_quants(blocks).astype(np.int8) - np.int8(1)).astype(np.float32)
