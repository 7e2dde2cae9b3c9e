"""Files of log-probabilities, as ``llama-perplexity --kl-divergence-base FILE`` writes and reads them.

Little-endian, nothing between the parts:

===================================  =====================================================================
8 bytes                              ``_logits_``
3 x i32                              n_ctx, n_vocab, n_chunk
i32 [n_chunk, n_ctx]                 token ids of the text (BOS, which each chunk is fed with, is not put in)
n_chunk * n_scored records           f32 step, f32 floor, u16 [n_vocab] (and one more if n_vocab is odd)
===================================  =====================================================================

A record holds the log-probabilities ``step * q + floor`` after one position; those of positions n_ctx // 2 to
n_ctx - 2 of each chunk. Whatever is more than 16 below the likeliest is cut off: its q is 0.

Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from .atomic_file import AtomicFile
from .errors import FormatError

F32 = npt.NDArray[np.float32]

MAGIC = b"_logits_"
CUT = np.float32(16.0)
N_STEP = np.float32(65535.0)
HEAD_BYTES = len(MAGIC) + 12
MAX_CTX, MAX_VOCAB, MAX_CHUNK = 1 << 24, 1 << 24, 1 << 24


def record_words(n_vocab: int) -> int:
    """Return the u16 words of a record."""
    return 4 + 2 * ((n_vocab + 1) // 2)


def n_scored(n_ctx: int) -> int:
    """Return how many positions of a chunk have a record."""
    return n_ctx - 1 - n_ctx // 2


class LogitsFile:
    """An opened file; the log-probabilities stay on disk until they are asked for.

    Attributes:
        path: the file.
        n_ctx: tokens of a chunk.
        n_vocab: token ids.
        n_chunk: chunks.
        tokens: i32 [n_chunk, n_ctx].
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            FormatError: it cannot be read, or is not such a file, or has another length than it says.
        """
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                if len(head) < HEAD_BYTES or head[: len(MAGIC)] != MAGIC:
                    raise FormatError(f"{path}: not a file of llama-perplexity --kl-divergence-base")
                self.n_ctx, self.n_vocab, self.n_chunk = np.frombuffer(head[len(MAGIC) :], "<i4").tolist()
                self._check_size(size)
                n_token = self.n_ctx * self.n_chunk
                self.tokens = np.frombuffer(file.read(4 * n_token), "<i4").reshape(self.n_chunk, self.n_ctx)
            n_row = self.n_chunk * n_scored(self.n_ctx)
            shape = (n_row, record_words(self.n_vocab))
            self._records = np.memmap(path, "<u2", "r", HEAD_BYTES + 4 * n_token, shape)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_vocab:
            raise FormatError(f"{path}: holds token ids outside of its vocabulary of {self.n_vocab}. It is damaged")

    def _check_size(self, size: int) -> None:
        n_ctx, n_vocab, n_chunk = self.n_ctx, self.n_vocab, self.n_chunk
        if not (4 <= n_ctx <= MAX_CTX and 1 <= n_vocab <= MAX_VOCAB and 1 <= n_chunk <= MAX_CHUNK):
            raise FormatError(f"{self.path}: {n_chunk} chunks of {n_ctx} tokens of {n_vocab}: not possible")
        expected = HEAD_BYTES + 4 * n_ctx * n_chunk + 2 * n_chunk * n_scored(n_ctx) * record_words(n_vocab)
        if size != expected:
            raise FormatError(f"{self.path}: {size} bytes, expected {expected} for {n_chunk} chunks. It was cut short")

    def log_p(self, row_start: int, row_stop: int, start: int = 0, stop: int | None = None) -> F32:
        """Return log-probabilities of some rows and a range of the vocabulary, f32 [n, stop - start].

        Args:
            row_start: first row, over all chunks.
            row_stop: end of the rows.
            start: first token id.
            stop: end of the token ids; None: all.

        Raises:
            FormatError: they are no numbers.
        """
        records = self._records[row_start:row_stop]
        head = np.ascontiguousarray(records[:, :4]).view("<f4")  # [n, 2]: step, floor
        if not np.isfinite(head).all():
            raise FormatError(f"{self.path}: holds log-probabilities that are no numbers. It is damaged")
        stop = self.n_vocab if stop is None else stop
        result: F32 = records[:, 4 + start : 4 + stop].astype(np.float32)
        result *= head[:, :1]
        result += head[:, 1:]
        return result


class LogitsWriter:
    """Writes such a file row by row: the whole file appears at the end, or nothing.

    Args:
        path: the file.
        tokens: i32 [n_chunk, n_ctx], as they stand in the text.
        n_vocab: token ids.

    Raises:
        ConfigError: the file cannot be written.
        CapacityError: the disk has not enough room.
    """

    def __init__(self, path: Path, tokens: npt.NDArray[np.integer], n_vocab: int) -> None:
        n_chunk, n_ctx = tokens.shape
        self.path, self._n_vocab, self._n_left = path, n_vocab, n_chunk * n_scored(n_ctx)
        self._file = AtomicFile(path, 2 * self._n_left * record_words(n_vocab))
        self._file.write(MAGIC + np.array([n_ctx, n_vocab, n_chunk], "<i4").tobytes())
        self._file.write(np.ascontiguousarray(tokens, "<i4").tobytes())

    def add(self, logits: F32) -> None:
        """Write the next rows, f32 [n, n_vocab].

        Raises:
            CapacityError: the disk is full.
        """
        self._file.write(encode(logits).tobytes())
        self._n_left -= len(logits)

    def finish(self) -> None:
        """Put the file in its place."""
        assert self._n_left == 0, f"{self._n_left} rows are missing"
        self._file.finish()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Remove what was not finished."""
        self._file.close()


def encode(logits: F32) -> npt.NDArray[np.uint16]:
    """Return rows of logits f32 [n, n_vocab] as records, u16 [n, record_words]."""
    n, n_vocab = logits.shape
    records = np.zeros((n, record_words(n_vocab)), "<u2")
    for record, row in zip(records, logits, strict=True):  # row by row: the temporaries stay small
        largest = row.max()
        smallest = max(row.min(), largest - CUT)
        log_sum = np.float32(np.log(np.exp(row - largest).sum(dtype=np.float64)))
        step = (largest - smallest) / N_STEP
        record[:4] = np.array([step, smallest - largest - log_sum], "<f4").view("<u2")
        if step:
            q = np.rint((np.float32(1) / step) * (row - smallest))
            record[4 : 4 + n_vocab] = np.where(row > smallest, q, 0)
    return records
