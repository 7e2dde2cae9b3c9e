"""Read the logits that ``llama-perplexity --kl-divergence-base FILE`` writes.

Little-endian, nothing between the parts:

| bytes | what |
|---|---|
| 8 | ``_logits_`` |
| 12 | int32 n_ctx, n_vocab, n_chunk |
| 4 * n_chunk * n_ctx | int32 token ids of the text (BOS, which each chunk is fed with, is not put in) |
| n_chunk * n_scored records | float32 step, float32 floor, n_vocab uint16 q (and one more if n_vocab is odd) |

A record holds the log-probabilities after one position, ``step * q + floor``, for the positions n_ctx / 2 to
n_ctx - 2 of each chunk. Those more than 16 below the largest are cut off: their q is 0.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from dataclasses import dataclass

import numpy as np

MAGIC = b"_logits_"


@dataclass(frozen=True)
class BaseFile:
    """An opened file.

    ``tokens`` is int32 [n_chunk, n_ctx], ``_records`` uint16 [n_chunk, n_scored, 4 + n_vocab (+ 1)].
    """

    n_ctx: int
    n_vocab: int
    n_chunk: int
    tokens: np.ndarray
    _records: np.ndarray

    @property
    def first(self):
        """Position within a chunk whose logits are the first in the file."""
        return self.n_ctx // 2

    def log_probabilities(self, chunk):
        """Return (log-probabilities f32 [n_scored, n_vocab], mask of those that were cut off)."""
        records = np.array(self._records[chunk])
        head = records[:, :4].copy().view(np.float32)  # [n_scored, 2]: step, floor
        q = records[:, 4 : 4 + self.n_vocab]
        return q * head[:, :1] + head[:, 1:], q == 0


def read_base_file(path):
    """Open a file; its logits stay on disk."""
    with path.open("rb") as file:
        if file.read(8) != MAGIC:
            raise ValueError(f"{path}: no file of llama-perplexity --kl-divergence-base")
        n_ctx, n_vocab, n_chunk = np.frombuffer(file.read(12), "<i4").tolist()
        tokens = np.frombuffer(file.read(4 * n_ctx * n_chunk), "<i4").reshape(n_chunk, n_ctx)
        shape = (n_chunk, n_ctx - 1 - n_ctx // 2, 4 + 2 * ((n_vocab + 1) // 2))
        return BaseFile(n_ctx, n_vocab, n_chunk, tokens, np.memmap(path, "<u2", "r", file.tell(), shape))
