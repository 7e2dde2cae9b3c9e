"""Pages and sequences against lists of numbers: what is written stays, whoever forks, forgets or restores."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmrun.formats.errors import CapacityError
from llmrun.runtime.kernels.layout import PAGE_SLOTS
from llmrun.runtime.kv_cache import KvPages, KvSequence

N_PAGE = 7


def write(pages, sequence, slot, number):
    """Write a number where a slot's values lie, in every layer."""
    page = int(sequence.page_table[slot // PAGE_SLOTS])
    for layer in range(pages.n_layer):
        pages.values[layer, page].reshape(-1, PAGE_SLOTS, 16)[:, slot % PAGE_SLOTS] = number + layer


def read(pages, sequence):
    """Return what the slots of a sequence hold, per layer."""
    slots = range(sequence.n_past)
    tables = [(int(sequence.page_table[s // PAGE_SLOTS]), s % PAGE_SLOTS) for s in slots]
    return [
        [int(pages.values[layer, page].reshape(-1, PAGE_SLOTS, 16)[0, lane, 0]) - layer for page, lane in tables]
        for layer in range(pages.n_layer)
    ]


class Sequences(RuleBasedStateMachine):
    """Random operations on several sequences; a list of numbers says what each must hold."""

    @initialize()
    def start(self):
        self.pages = KvPages(2, 1, 16, N_PAGE * PAGE_SLOTS)
        self.live = [(KvSequence(self.pages, 300), [])]
        self.saved = []
        self.next_number = 0

    def pick(self, choice):
        return self.live[choice % len(self.live)]

    @rule(choice=st.integers(0, 9), n=st.sampled_from([1, 2, 3, 30, 63, 64, 65, 100]))
    def append(self, choice, n):
        sequence, numbers = self.pick(choice)
        try:
            sequence.append(n)
        except CapacityError:
            return
        for _ in range(n):
            self.next_number = (self.next_number + 1) % 1000
            write(self.pages, sequence, len(numbers), self.next_number)
            numbers.append(self.next_number)

    @rule(choice=st.integers(0, 9), back=st.integers(0, 130))
    def rollback(self, choice, back):
        sequence, numbers = self.pick(choice)
        n_past = max(0, len(numbers) - back)
        sequence.rollback(n_past)
        del numbers[n_past:]

    @rule(choice=st.integers(0, 9))
    def fork(self, choice):
        sequence, numbers = self.pick(choice)
        self.live.append((sequence.fork(), list(numbers)))

    @rule(choice=st.integers(0, 9))
    def close(self, choice):
        if len(self.live) > 1:
            sequence, _ = self.live.pop(choice % len(self.live))
            sequence.close()

    @rule(choice=st.integers(0, 9))
    def save(self, choice):
        sequence, numbers = self.pick(choice)
        self.saved.append((sequence.save(), list(numbers)))

    @rule(choice=st.integers(0, 9), which=st.integers(0, 9))
    def restore(self, choice, which):
        if not self.saved:
            return
        sequence, numbers = self.pick(choice)
        state, wanted = self.saved[which % len(self.saved)]
        try:
            sequence.restore(state)
        except CapacityError:
            sequence.rollback(0)
            numbers.clear()
            return
        numbers[:] = wanted

    @invariant()
    def contents_are_right(self):
        for sequence, numbers in getattr(self, "live", []):
            assert sequence.n_past == len(numbers)
            assert read(self.pages, sequence) == [numbers] * 2

    @invariant()
    def every_page_is_counted(self):
        if not hasattr(self, "live"):
            return
        users = [0] * N_PAGE
        for sequence, _ in self.live:
            for page in sequence.page_table[: sequence._n_page]:
                users[page] += 1
        assert users == self.pages._n_user
        assert sorted(self.pages._free) == [i for i, n in enumerate(users) if n == 0]


Sequences.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestSequences = Sequences.TestCase


def test_a_full_context_and_full_pages_are_refused():
    pages = KvPages(1, 1, 16, 2 * PAGE_SLOTS)
    sequence = KvSequence(pages, 100)
    sequence.append(99)
    with pytest.raises(CapacityError, match="context is full: 99 of 100 tokens used, 2 more wanted"):
        sequence.append(2)
    other = KvSequence(pages, 100)
    with pytest.raises(CapacityError, match="the KV cache is full: 128 slots; try a larger --ctx-size"):
        other.append(1)
    sequence.close()
    other.append(100)


@pytest.mark.parametrize("n_past", [-1, 6, 1000])
def test_rollback_goes_back_only(n_past):
    sequence = KvSequence(KvPages(1, 1, 16, 64), 64)
    sequence.append(5)
    with pytest.raises(ValueError, match=f"rollback to {n_past} of 5"):
        sequence.rollback(n_past)


def test_full_pages_are_put_in_front():
    pages = KvPages(2, 1, 16, 8 * PAGE_SLOTS)
    sequence, earlier = KvSequence(pages, 300), KvSequence(pages, 300)
    sequence.append(10)
    earlier.append(2 * PAGE_SLOTS)
    for i in range(10):
        write(pages, sequence, i, 1000 + i)
    for i in range(2 * PAGE_SLOTS):
        write(pages, earlier, i, i)
    sequence.prepend(earlier)
    want = [*range(2 * PAGE_SLOTS), *range(1000, 1010)]
    assert read(pages, sequence) == [want, want]
    assert (sequence.n_past, earlier.n_past) == (2 * PAGE_SLOTS + 10, 0)
    earlier.close()
    sequence.append(1)
    sequence.rollback(0)
    assert len(pages._free) == 8
    earlier.append(PAGE_SLOTS + 1)
    with pytest.raises(ValueError, match="65 slots before 0 of 300"):
        sequence.prepend(earlier)


def test_first_pages_are_given_back():
    pages = KvPages(2, 1, 16, 8 * PAGE_SLOTS)
    sequence = KvSequence(pages, 300)
    sequence.append(3 * PAGE_SLOTS + 5)
    for i in range(3 * PAGE_SLOTS + 5):
        write(pages, sequence, i, i)
    fork = sequence.fork()
    sequence.drop_first(2)
    want = [*range(2 * PAGE_SLOTS, 3 * PAGE_SLOTS + 5)]
    assert sequence.n_past == PAGE_SLOTS + 5
    assert read(pages, sequence) == [want, want]
    fork.close()
    assert len(pages._free) == 6
    sequence.close()
    assert len(pages._free) == 8


def test_forks_share_whole_pages():
    pages = KvPages(1, 1, 16, 8 * PAGE_SLOTS)
    sequence = KvSequence(pages, 512)
    sequence.append(2 * PAGE_SLOTS + 10)
    forks = [sequence.fork() for _ in range(3)]
    assert len(pages._free) == 5
    for fork in forks:
        fork.append(1)  # only the last, half-filled page is copied
    assert len(pages._free) == 2
    assert {tuple(f.page_table[:2]) for f in forks} == {tuple(sequence.page_table[:2])}


def test_memory_of_a_slot_is_what_the_plan_says():
    for n_layer, n_head_kv, width in ((2, 3, 16), (30, 3, 64), (1, 1, 256)):
        pages = KvPages(n_layer, n_head_kv, width, PAGE_SLOTS)
        assert PAGE_SLOTS * KvPages.slot_bytes(n_layer, n_head_kv, width) == pages.keys.nbytes + pages.values.nbytes


def test_pages_start_at_cache_lines():
    pages = KvPages(3, 1, 16, 5 * PAGE_SLOTS)
    for array in (pages.keys, pages.values):
        assert all(array[layer, page].ctypes.data % 64 == 0 for layer in range(3) for page in range(5))
        assert array.dtype == np.float16
