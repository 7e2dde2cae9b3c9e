"""What stands before a draft model's window: what has most in common with the text's end is read first."""

from hypothesis import given
from hypothesis import strategies as st

from llmrun.runtime.kernels.layout import PAGE_SLOTS
from llmrun.runtime.speculation.earlier_text import LEAD, LEAST_PIECE, N_NEAR, N_RECENT, N_WHOLE, EarlierText

COMMON = 7  # stands in every block
ONE = PAGE_SLOTS + LEAD  # tokens that are read for one block


def text(n_block, n_rest=0):
    """Return tokens of which each block has its own, but for a common one: 1000 * (block + 1) and what follows."""
    blocks = [[1000 * (block + 1) + i for i in range(PAGE_SLOTS - 1)] + [COMMON] for block in range(n_block)]
    return [*range(1, n_rest + 1), *(token_id for block in blocks for token_id in block)]


def recent(*blocks, n=5):
    """Return last tokens that name the first ones of some blocks, and nothing else."""
    return [*[COMMON] * N_RECENT, *(1000 * (block + 1) + i for block in blocks for i in range(n))]


def test_the_block_that_has_most_in_common_comes_first_and_then_the_one_behind():
    ids = text(10)
    earlier = EarlierText(ids, 0, len(ids))
    for said, wanted in ((recent(3, n=7), 3), (recent(3, n=7), 4), (recent(1), 1), (recent(), 9), (recent(), 8)):
        places = earlier.choose([*ids, *said], ONE)
        assert places == [(wanted * PAGE_SLOTS, (wanted + 1) * PAGE_SLOTS)]


def test_what_has_little_in_common_is_not_read_but_right_before_the_window():
    ids = text(10)
    earlier = EarlierText(ids, 0, len(ids))
    said = recent(2, n=1)
    assert earlier.choose([*ids, *said], len(ids)) == [(PAGE_SLOTS * (10 - N_NEAR), len(ids))]
    assert earlier.choose([*ids, *said], len(ids)) == []
    assert earlier.choose([*ids, *recent(2)], ONE) == [(2 * PAGE_SLOTS, 3 * PAGE_SLOTS)]


def test_a_text_that_is_spoken_of_is_read_whole_neighbours_first():
    ids = text(10)
    earlier = EarlierText(ids, 0, len(ids))
    said = [*recent(4, n=3), 1001]  # and one of the first block's
    assert earlier.choose([*ids, *said], ONE + PAGE_SLOTS) == [(4 * PAGE_SLOTS, 6 * PAGE_SLOTS)]
    earlier = EarlierText(ids, 0, len(ids))
    assert earlier.choose([*ids, *said], len(ids)) == [(0, len(ids))]
    earlier = EarlierText(ids, 0, len(ids))
    of_the_end = [*ids, *recent(10 - N_NEAR, n=3)]  # what is near is no sign that the answer is about the rest
    assert earlier.choose(of_the_end, len(ids)) == [(PAGE_SLOTS * (10 - N_NEAR), len(ids))]


def test_of_a_long_text_only_what_is_spoken_of_is_read():
    n = N_NEAR + N_WHOLE
    for n_block, start in ((n, 0), (n + 1, PAGE_SLOTS * (n + 1 - N_NEAR))):
        ids = text(n_block)
        said = [*ids, *recent(4, n=2)]
        assert EarlierText(ids, 0, len(ids)).choose(said, len(ids)) == [(start, len(ids))]


def test_tokens_before_a_piece_are_part_of_what_may_be_read():
    ids = text(3)
    earlier = EarlierText(ids, 0, len(ids))
    assert earlier.choose(ids, ONE - 1) == []
    assert earlier.choose(ids, ONE) == [(2 * PAGE_SLOTS, len(ids))]
    assert [earlier.lead(start) for start in (0, 3, PAGE_SLOTS)] == [0, 3, LEAD]


def test_only_the_last_tokens_are_looked_for():
    ids = text(6)
    earlier = EarlierText(ids, 0, len(ids))
    said = [*recent(1, n=9), *recent(2), *[COMMON] * (N_RECENT - 5)]
    assert earlier.choose([*ids, *said], ONE) == [(2 * PAGE_SLOTS, 3 * PAGE_SLOTS)]


def test_a_token_that_stands_in_many_blocks_counts_for_little():
    ids = text(9)
    ids[: 6 * PAGE_SLOTS : PAGE_SLOTS] = [5] * 6
    earlier = EarlierText(ids, 0, len(ids))
    assert earlier.choose([*recent(6, n=3), 5], ONE) == [(6 * PAGE_SLOTS, 7 * PAGE_SLOTS)]


def test_what_is_left_of_a_page_comes_last_and_with_its_neighbour_in_one_piece():
    for n_rest, is_read in ((LEAST_PIECE - 1, False), (LEAD + 14, True)):
        ids = text(N_NEAR, n_rest)
        earlier = EarlierText(ids, 0, len(ids))
        assert earlier.choose(ids, len(ids)) == [(0 if is_read else n_rest, len(ids))]
        earlier = EarlierText(ids, 0, len(ids))
        assert earlier.choose(ids, len(ids) - is_read) == [(n_rest, len(ids))]
        assert earlier.choose(ids, n_rest - 1) == []
        assert earlier.choose(ids, n_rest) == ([(0, n_rest)] if is_read else [])
        assert earlier.choose(ids, 1000) == []


@given(
    st.lists(st.integers(0, 40), max_size=500),
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(-5, 300), st.lists(st.integers(0, 40), max_size=30)), max_size=12),
)
def test_places_are_read_once_and_no_more_than_may_be(ids, start, asked):
    start = min(start, len(ids))
    earlier, read = EarlierText(ids, start, len(ids)), set()
    for n_token, said in asked:
        places = earlier.choose([*ids, *said], n_token)
        tokens = [i for begin, stop in places for i in range(begin, stop)]
        assert len(tokens) + sum(earlier.lead(begin) for begin, _ in places) <= max(0, n_token)
        assert not read & set(tokens)
        assert set(tokens) <= set(range(start, len(ids)))
        assert len(set(tokens)) == len(tokens)
        assert places == sorted(places, reverse=True)
        for begin, stop in places:
            assert (len(ids) - stop) % PAGE_SLOTS == 0
            assert (stop - begin) % PAGE_SLOTS == 0 or begin == start
        read |= set(tokens)
        if any((stop - begin) % PAGE_SLOTS for begin, stop in places):
            assert len(read) == len(ids) - start
