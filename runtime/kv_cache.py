"""KV pages and the sequences that own them.

``KvPages`` is the memory: pages of ``PAGE_SLOTS`` slots, each with the keys and values of all layers, reserved at
once and touched only when a slot is written. ``KvSequence`` is one conversation's list of pages. Forking shares
full pages and copies only the last, half-filled one; undoing a turn is a truncation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.errors import CapacityError, ConfigError
from .kernels.layout import DEFAULT_KV_TYPE, KV_HEAD_BYTES, PAGE_SLOTS


class KvPages:
    """Keys and values of all layers.

    Args:
        n_layer: layers.
        n_head_kv: key heads of a layer.
        n_embd_head: columns of a head.
        n_slot: slots that can be in use at once, over all sequences.
        kv_type: how they are kept, one of ``KV_TYPES`` (``kernels/kv_store.py`` has the layouts).

    Raises:
        ConfigError: heads of that width cannot be kept in that type.
    """

    def __init__(
        self, n_layer: int, n_head_kv: int, n_embd_head: int, n_slot: int, kv_type: str = DEFAULT_KV_TYPE
    ) -> None:
        if kv_type != "f16" and n_embd_head % 32:
            raise ConfigError(
                f"a KV cache of type {kv_type} needs heads of a multiple of 32 columns, this model's have {n_embd_head}"
            )
        self.n_layer, self.n_embd_head, self.kv_type = n_layer, n_embd_head, kv_type
        self.n_page = -(-n_slot // PAGE_SLOTS)
        self.page_bytes = n_head_kv * n_embd_head * KV_HEAD_BYTES[kv_type]
        # All layers of a page lie together: a system that gives memory in pieces of 2 MB gives few of them at first.
        pages = _reserve((self.n_page, n_layer, 2, self.page_bytes))
        if kv_type == "f16":
            pages = pages.view(np.float16)
        self.keys, self.values = pages[:, :, 0].swapaxes(0, 1), pages[:, :, 1].swapaxes(0, 1)  # [n_layer, n_page, …]
        self.page_stride = pages.strides[0]
        self._free = list(range(self.n_page - 1, -1, -1))
        self._n_user = [0] * self.n_page

    @staticmethod
    def slot_bytes(n_layer: int, n_head_kv: int, n_embd_head: int, kv_type: str = DEFAULT_KV_TYPE) -> int:
        """Return the bytes that one slot of all layers takes."""
        return n_layer * 2 * n_head_kv * n_embd_head * KV_HEAD_BYTES[kv_type] // PAGE_SLOTS

    def take(self) -> int:
        """Return a free page.

        Raises:
            CapacityError: all pages are in use.
        """
        if not self._free:
            raise CapacityError(f"the KV cache is full: {self.n_page * PAGE_SLOTS} slots; try a larger --ctx-size")
        page = self._free.pop()
        self._n_user[page] = 1
        return page

    def share(self, page: int) -> None:
        """Count one more owner of a page."""
        self._n_user[page] += 1

    def release(self, page: int) -> None:
        """Give up one ownership of a page."""
        self._n_user[page] -= 1
        if self._n_user[page] == 0:
            self._free.append(page)

    def clear(self, page: int) -> None:
        """Fill a page of every layer with zeros."""
        self.keys[:, page] = 0
        self.values[:, page] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy a page of every layer."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def is_shared(self, page: int) -> bool:
        """Whether more than one sequence owns the page."""
        return self._n_user[page] > 1


def _reserve(shape: tuple[int, ...]) -> NDArray[Any]:
    """Return bytes that take room only where they are written, 64-byte aligned."""
    n = int(np.prod(shape))
    raw = np.empty(n + 64, np.uint8)  # large blocks come from the system untouched
    skip = -raw.ctypes.data % 64
    result: NDArray[Any] = raw[skip : skip + n].reshape(shape)
    return result


class KvSequence:
    """The state of one sequence: ``n_past`` slots filled with consecutive tokens."""

    def __init__(self, pages: KvPages, n_ctx: int) -> None:
        self._pages = pages
        self.n_ctx = n_ctx
        self.n_past = 0
        self._n_page = 0
        self.page_table = np.zeros(-(-n_ctx // PAGE_SLOTS), np.int64)

    def append(self, n: int) -> None:
        """Make room for ``n`` more slots after ``n_past`` and count them as filled.

        Raises:
            CapacityError: the context is full, or no page is free.
        """
        if self.n_past + n > self.n_ctx:
            raise CapacityError(f"context is full: {self.n_past} of {self.n_ctx} tokens used, {n} more wanted")
        while self._n_page * PAGE_SLOTS < self.n_past + n:
            self.page_table[self._n_page] = self._pages.take()
            self._n_page += 1
        last = self.n_past // PAGE_SLOTS
        if last < self._n_page and self._pages.is_shared(int(self.page_table[last])):
            self._own(last)
        self.n_past += n

    def skip(self, n: int) -> None:
        """Fill ``n`` slots of an empty sequence, less than a page, with zeros that no row is to see.

        Raises:
            CapacityError: the context is full, or no page is free.
        """
        self.append(n)
        if n:
            self._pages.clear(int(self.page_table[0]))

    def _own(self, index: int) -> None:
        shared, own = int(self.page_table[index]), self._pages.take()
        self._pages.copy(shared, own)
        self._pages.release(shared)
        self.page_table[index] = own

    def rollback(self, n_past: int) -> None:
        """Forget everything after the first ``n_past`` slots."""
        if not 0 <= n_past <= self.n_past:
            raise ValueError(f"rollback to {n_past} of {self.n_past}")
        keep = -(-n_past // PAGE_SLOTS)
        while self._n_page > keep:
            self._n_page -= 1
            self._pages.release(int(self.page_table[self._n_page]))
        self.n_past = n_past

    def prepend(self, earlier: KvSequence) -> None:
        """Take over what another sequence holds, full pages of as many slots, in front of this one's slots.

        The slots of both had only their own sequence to attend to; what follows attends to all of them.

        Raises:
            ValueError: the other's last page is not full, or there are too many for the context.
        """
        n = earlier._n_page
        if earlier.n_past % PAGE_SLOTS or self.n_past + earlier.n_past > self.n_ctx:
            raise ValueError(f"{earlier.n_past} slots before {self.n_past} of {self.n_ctx}; pages of {PAGE_SLOTS}")
        self.page_table[n : n + self._n_page] = self.page_table[: self._n_page].copy()
        self.page_table[:n] = earlier.page_table[:n]
        self.n_past, self._n_page = self.n_past + earlier.n_past, self._n_page + n
        earlier.n_past = earlier._n_page = 0

    def drop_first(self, n_page: int) -> None:
        """Give the first pages back; the slots behind them keep what they hold."""
        for page in self.page_table[:n_page]:
            self._pages.release(int(page))
        self._n_page -= n_page
        self.n_past -= n_page * PAGE_SLOTS
        self.page_table[: self._n_page] = self.page_table[n_page : n_page + self._n_page].copy()

    def fork(self) -> KvSequence:
        """Return a second sequence with the same past; pages are shared until one of the two writes."""
        other = KvSequence(self._pages, self.n_ctx)
        other.page_table[:] = self.page_table
        other.n_past, other._n_page = self.n_past, self._n_page
        for page in self.page_table[: self._n_page]:
            self._pages.share(int(page))
        return other

    def save(self) -> dict[str, Any]:
        """Return a copy of the filled pages, to be given to ``restore``."""
        used = self.page_table[: self._n_page]
        return {
            "n_past": self.n_past,
            "kv_type": self._pages.kv_type,
            "keys": self._pages.keys[:, used].copy(),
            "values": self._pages.values[:, used].copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Replace this sequence's content by a saved one.

        Raises:
            ConfigError: it was saved from a cache of another type.
        """
        if state["kv_type"] != self._pages.kv_type:
            raise ConfigError(f"saved keys and values are {state['kv_type']}, this cache is {self._pages.kv_type}")
        self.rollback(0)
        self.append(state["n_past"])
        used = self.page_table[: self._n_page]
        self._pages.keys[:, used], self._pages.values[:, used] = state["keys"], state["values"]

    def close(self) -> None:
        """Give all pages back."""
        self.rollback(0)
