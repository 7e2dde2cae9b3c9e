"""Find where the strings of a GGUF string array begin, without a Python loop in the usual case.

A string is a u64 length (little endian) and that many bytes; the next string follows at once, so
the chain of headers is sequential by nature. But nearly all strings of a vocabulary are shorter than
256 bytes, so a header shows as seven zero bytes after its first byte. All such places in a piece of the
file are guessed to be headers, and the guess is checked as a whole: when every guessed header's string
ends where the next guessed header begins, the chain from a known header is exactly the guess (induction).
Where the check breaks (a long string, an empty one, zero bytes in the text) one header is followed
sequentially; a piece with many breaks is followed sequentially throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]

_PIECE_BYTES = 1 << 16  # fits the L2 cache with its temporaries, which reach 40 times its size (all zeros)
_FEW = 400  # where both ways take about 60 us
_MAX_BREAKS = 64  # per piece; a repaired break costs about 20 sequential steps
_read_u64 = Struct("<Q").unpack_from


class StringTooLongError(Exception):
    """A string reaches past the limit; ``args`` are its index, its length and the bytes left for it."""


def find_strings(
    read: Callable[[int, int], bytes],
    start: int,
    count: int,
    limit: int,
    *,
    piece_bytes: int = _PIECE_BYTES,
    few: int = _FEW,
) -> Offsets:
    """Return the offset of every string's length field and, last, the end of the array.

    Args:
        read: returns bytes by (offset, n_bytes).
        start: offset of the first string.
        count: number of strings. The caller has checked that ``8 * count`` bytes exist.
        limit: offset that no string may pass.
        piece_bytes: bytes to look at together, at least 8.
        few: at most so many strings are followed sequentially.

    Returns:
        i64 [count + 1]: string ``i`` has its bytes in ``[offsets[i] + 8, offsets[i + 1])``.

    Raises:
        StringTooLongError: a string passes ``limit``.
    """
    offsets = np.empty(count + 1, np.int64)  # [count + 1]
    n_done, pos = 0, start
    while n_done < count:
        if limit - pos < 8:
            raise StringTooLongError(n_done, 8, max(0, limit - pos))
        n_left = count - n_done
        piece = read(pos, min(piece_bytes, 128 * n_left, limit - pos))
        found, end = (_follow if n_left > few else _follow_slowly)(piece, 0, n_left)
        offsets[n_done : n_done + len(found)] = found
        offsets[n_done : n_done + len(found)] += pos
        n_done += len(found)
        if pos + end > limit:
            last = int(offsets[n_done - 1])
            raise StringTooLongError(n_done - 1, pos + end - last - 8, limit - last - 8)
        pos += end
    offsets[count] = pos
    return offsets


def _follow(piece: bytes, pos: int, max_count: int) -> tuple[Offsets, int]:
    """Return the headers of the chain from ``pos`` that are wholly inside ``piece``, and the chain's next position.

    ``piece`` holds at least 8 bytes; at most ``max_count`` headers are returned. The next position may lie
    outside of ``piece``.
    """
    guess, follower, breaks = _guess_headers(piece)
    runs: list[Offsets] = []
    n_found = n_break = 0
    last_header = len(piece) - 8
    while n_found < max_count and pos <= last_header:
        i = int(np.searchsorted(guess, pos))
        if i < len(guess) and guess[i] == pos:
            stop = min(int(breaks[np.searchsorted(breaks, i)]) + 1, i + max_count - n_found)
            run, pos = guess[i:stop], int(follower[stop - 1])
        else:
            run, pos = np.array([pos], np.int64), pos + 8 + _read_u64(piece, pos)[0]
        runs.append(run)
        n_found += len(run)
        n_break += 1
        if n_break > _MAX_BREAKS:
            run, pos = _follow_slowly(piece, pos, max_count - n_found)
            runs.append(run)
            break
    return np.concatenate(runs), pos


def _guess_headers(piece: bytes) -> tuple[Offsets, Offsets, Offsets]:
    """Return places that look like the header of a short string, where each string ends, and the chain's breaks.

    A break is the index of a guess whose string does not end at the next guess; the last index always is one.
    """
    data = np.frombuffer(piece, np.uint8)
    zero1 = data[1:] == 0
    zero2 = zero1[:-1] & zero1[1:]
    zero4 = zero2[:-2] & zero2[2:]
    zero7 = zero4[:-3] & zero4[3:]  # [len(piece) - 7], element p: bytes p + 1 to p + 7 are zero
    guess = np.flatnonzero(zero7).astype(np.int64)
    follower = guess + data[guess] + 8
    breaks = np.flatnonzero(follower[:-1] != guess[1:]).astype(np.int64)
    return guess, follower, np.append(breaks, len(guess) - 1)


def _follow_slowly(piece: bytes, pos: int, max_count: int) -> tuple[Offsets, int]:
    """Do the same as ``_follow``, one header after the other."""
    found: list[int] = []
    last_header = len(piece) - 8
    while len(found) < max_count and pos <= last_header:
        found.append(pos)
        pos += 8 + _read_u64(piece, pos)[0]
    return np.array(found, np.int64), pos
