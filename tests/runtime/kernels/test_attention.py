"""Attention over pages: the bits of the twin for any mask, context, head width and grouping of heads."""

import numpy as np
import pytest

from llmrun.formats.errors import ConfigError
from llmrun.runtime.batch import Batch, Row
from llmrun.runtime.kernels import reference as twin
from llmrun.runtime.kernels.layout import KV_TYPES, PAGE_SLOTS
from llmrun.runtime.key_balance import key_factors
from llmrun.runtime.kv_cache import KvPages
from llmrun.runtime.program import Biases, Rope

from ..bits import assert_same_bits
from ..machine import BEST, WHOLE_TARGETS, rng_for
from ..memory_weights import MemoryWeights
from ..one_op import Bound, builder

SEGMENT_SLOTS = PAGE_SLOTS * twin.SEGMENT_PAGES


class Case:
    """Random keys and values of one sequence in scattered pages, and queries. What is not stored is NaN."""

    def __init__(self, n_slot, n_head, n_head_kv, width, *, kv_type="f16", softcap=0.0, window=0, n_tok=64, large=()):
        self.shape, self.kv_type = (n_slot, n_head, n_head_kv, width), kv_type
        self.softcap, self.window, self.scale = softcap, window, width**-0.5
        rng = rng_for("attention", *self.shape)
        # Peaked and flat scores, and values of any sign.
        self.k = (rng.normal(size=(n_slot, n_head_kv, width)) * 2).astype(np.float32)
        self.v = rng.normal(size=(n_slot, n_head_kv, width)).astype(np.float32)
        self.q = rng.normal(size=(n_tok, n_head * width)).astype(np.float32)
        self.biases = None  # of keys and queries; columns ``large`` of all key heads have some that others lack
        if large:
            self.biases = [(rng.normal(size=(n, width)) / 4).astype(np.float32) for n in (n_head_kv, n_head)]
            self.biases[0][:, large] += 100
            self.k += self.biases[0]
            self.q += self.biases[1].reshape(-1)
        self.n_page = -(-n_slot // PAGE_SLOTS)
        self.page_table = rng.permutation(self.n_page + 2)[: self.n_page].astype(np.int64)

    def rope(self):
        """Return the rotation that keys and queries are taken to have gone through: of all but four columns."""
        return Rope(n_pair=self.shape[3] // 2 - 2, frequencies=(), is_neox=True)

    def factors(self):
        """Return what keys are multiplied by in a q8_0 cache: [n_head_kv, width]."""
        _, _, n_head_kv, width = self.shape
        if self.biases is None:
            return np.ones((n_head_kv, width), np.float32)
        k, q = (x.reshape(-1) for x in self.biases)
        return key_factors(k, q, n_head_kv, width, self.rope())

    def rows(self, masks):
        """Return rows that see (start, stop, ancestors); their own slots and positions do not matter to attention."""
        return [
            Row(
                token_id=-1,
                page_table=self.page_table,
                slot=0,
                position=0,
                visible_start=start,
                visible_stop=stop,
                ancestors=ancestors,
            )
            for start, stop, ancestors in masks
        ]

    def bind(self, machine, target_name, n_tok):
        """Return the bound program with all keys and values stored, and the buffers of q and y."""
        n_slot, n_head, n_head_kv, width = self.shape
        pages = KvPages(1, n_head_kv, width, PAGE_SLOTS * (self.n_page + 2), self.kv_type)
        pages.keys.view(np.uint8)[:], pages.values.view(np.uint8)[:] = 0xFF, 0xFF  # NaN, or -1 times NaN
        b, q = builder(n_head * width)
        weights, biases = MemoryWeights(), None
        if self.biases is not None:
            added = [weights.add_vector(name, x.reshape(-1)) for name, x in zip("kq", self.biases, strict=True)]
            biases = Biases(*added, self.rope())
        k, v = (b._new(name, n_head_kv * width) for name in "kv")
        b.kv_append(0, k, v, n_head_kv, biases)
        y = b.attention(0, q, n_head, n_head_kv, self.scale, softcap=self.softcap, window=self.window, biases=biases)
        b.output("y", y)
        bound = Bound(machine, target_name, b.build(1), weights, n_tok=max(n_tok, PAGE_SLOTS), pages=pages)
        for start in range(0, n_slot, PAGE_SLOTS):
            slots = np.arange(start, min(start + PAGE_SLOTS, n_slot))
            batch = Batch(
                [Row(token_id=-1, page_table=self.page_table, slot=int(s), position=0, visible_stop=1) for s in slots]
            )
            bound.put(k, self.k[slots].reshape(len(slots), -1))
            bound.put(v, self.v[slots].reshape(len(slots), -1))
            bound.run_op("kv_store", batch)
        return bound, q, y

    def run(self, machine, target_name, masks, n_worker=1):
        """Return the kernel's output, f32 [n_tok, n_head * width]."""
        bound, q, y = self.bind(machine, target_name, len(masks))
        bound.poison()
        bound.put(q, self.q[: len(masks)])
        bound.run_op("attention", Batch(self.rows(masks)), n_worker=n_worker)
        return bound.get(y, len(masks))

    def expected(self, masks):
        """Return what the twin says."""
        _, n_head, n_head_kv, width = self.shape
        heads = self.q[: len(masks)].reshape(len(masks), n_head_kv, n_head // n_head_kv, width)
        result, factors = np.empty_like(heads), self.factors()
        for i, (start, stop, ancestors) in enumerate(masks):
            slots = np.concatenate([np.arange(stop), ancestors if ancestors is not None else []]).astype(int)
            first = max(start, len(slots) - self.window) if self.window else start
            for h in range(n_head_kv):
                keys = twin.kept(self.k[slots, h], self.kv_type, is_key=True, factors=factors[h])
                values = twin.kept(self.v[slots, h], self.kv_type, is_key=False)
                result[i, h] = twin.attention_row(
                    heads[i, h], keys, values, first, self.scale, softcap_=self.softcap, factors=factors[h]
                )
        return result.reshape(len(masks), -1)


def plain(*stops):
    return [(0, stop, None) for stop in stops]


@pytest.fixture(params=KV_TYPES)
def kv_type(request):
    return request.param


def check_all(machine, case, masks):
    want = case.expected(masks)
    assert np.isfinite(want).all()
    for target_name in WHOLE_TARGETS:
        for n_worker in (1, 3) if target_name == BEST else (2,):
            got = case.run(machine, target_name, masks, n_worker)
            assert_same_bits(got, want, f"{target_name}, {n_worker} workers")


@pytest.mark.parametrize("group", range(1, 9))
def test_query_heads_that_share_a_key_head(machine, kv_type, group):
    check_all(machine, Case(70, 2 * group, 2, 32, kv_type=kv_type), plain(1, 2, 15, 16, 17, 33, 63, 64, 65, 70))


@pytest.mark.parametrize("width", [16, 32, 64, 80, 128, 256, 512])
def test_head_widths(machine, kv_type, width):
    if kv_type == "q8_0" and width % 32:
        with pytest.raises(ConfigError, match=f"heads of a multiple of 32 columns, this model's have {width}"):
            KvPages(1, 1, width, 64, kv_type)
        return
    for group in (1, 3):
        check_all(machine, Case(67, group, 1, width, kv_type=kv_type), plain(1, 40, 67))


def test_contexts_that_cross_pages_and_segments(machine, kv_type):
    n = SEGMENT_SLOTS
    check_all(
        machine,
        Case(2 * n + 70, 2, 1, 32, kv_type=kv_type),
        plain(127, 128, 129, n - 1, n, n + 1, n + 64, n + 65, 2 * n, 2 * n + 1, 2 * n + 70),
    )


@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 100, SEGMENT_SLOTS, 10_000])
def test_windows(machine, kv_type, window):
    case = Case(SEGMENT_SLOTS + 130, 2, 1, 32, kv_type=kv_type, window=window)
    check_all(machine, case, plain(1, 64, 65, 130, SEGMENT_SLOTS, SEGMENT_SLOTS + 65, SEGMENT_SLOTS + 130))


@pytest.mark.parametrize("window", [0, 5, 70])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_consecutive_rows(machine, kv_type, group, window):
    """Rows of a prompt share tiles; no row's bits come from what another sees."""
    check_all(machine, Case(170, group, 1, 32, kv_type=kv_type, window=window), plain(*range(121, 161)))


@pytest.mark.parametrize("softcap", [5.0, 50.0])
def test_soft_caps(machine, kv_type, softcap):
    check_all(machine, Case(140, 4, 2, 32, kv_type=kv_type, softcap=softcap), plain(1, 17, 64, 140))
    check_all(machine, Case(140, 4, 2, 32, kv_type=kv_type, softcap=softcap, window=40), plain(1, 40, 41, 140))


def test_spans(machine, kv_type):
    """Rows that start late (another text in the same sequence) or see slots after their own (an image's)."""
    masks = [
        (0, 70, None),
        (10, 70, None),
        (63, 64, None),
        (64, 65, None),
        (69, 70, None),
        (65, 140, None),
        (128, 131, None),
    ]
    check_all(machine, Case(140, 4, 2, 32, kv_type=kv_type), masks)
    check_all(machine, Case(140, 4, 2, 32, kv_type=kv_type, window=7), masks)


def ancestors(*slots):
    return np.array(slots, np.int64)


def test_ancestors(machine, kv_type):
    """Lists of slots in any order, across pages, after contiguous ones or alone, within and beyond a window."""
    masks = [
        (0, 0, ancestors(5)),
        (0, 0, ancestors(139, 0, 64, 63)),
        (0, 60, ancestors(70, 80, 61, 139, 100, 99)),
        (0, 64, ancestors(64)),
        (0, 63, ancestors(130, 131)),
        (0, 10, ancestors(*range(139, 30, -1))),
        (40, 50, ancestors(100, 2)),
    ]
    check_all(machine, Case(140, 3, 1, 32, kv_type=kv_type), masks)
    for window in (1, 3, 8, 70):
        check_all(machine, Case(140, 3, 1, 32, kv_type=kv_type, window=window), masks)


@pytest.mark.parametrize("n_past", [1, 62, 63, 64, 100, SEGMENT_SLOTS - 2, SEGMENT_SLOTS])
@pytest.mark.parametrize("window", [0, 5])
def test_a_branch_gives_the_bits_of_a_plain_chain(machine, kv_type, n_past, window):
    """The same keys and values, once in consecutive slots, once scattered over a tree's slots."""
    depth, n_tree = 6, 40
    chain = Case(n_past + depth, 4, 2, 32, kv_type=kv_type, window=window)
    tree = Case(n_past + n_tree, 4, 2, 32, kv_type=kv_type, window=window)
    branch = n_past + rng_for("branch", n_past).permutation(n_tree)[:depth]
    slots = np.concatenate([np.arange(n_past), branch])
    tree.k[slots], tree.v[slots], tree.q = chain.k, chain.v, chain.q
    rows = range(1, depth + 1)
    got = tree.run(machine, BEST, [(0, n_past, ancestors(*branch[:i])) for i in rows], n_worker=2)
    want = chain.run(machine, BEST, plain(*(n_past + i for i in rows)))
    assert_same_bits(got, want)


def test_a_row_does_not_depend_on_the_other_rows(machine, kv_type):
    case = Case(150, 8, 2, 32, kv_type=kv_type)
    stops = (150, 1, 64, 65, 130, 17, 149, 128)
    together = case.run(machine, BEST, plain(*stops), n_worker=3)
    queries = case.q
    for i, stop in enumerate(stops):
        case.q = queries[i:]
        assert_same_bits(case.run(machine, BEST, plain(stop))[0], together[i])


@pytest.mark.parametrize("window", [0, 700])
@pytest.mark.parametrize(("n_head", "n_head_kv", "n_row"), [(1, 1, 1), (4, 1, 1), (6, 3, 1), (4, 1, 5), (40, 1, 1)])
def test_segments_dealt_out_to_many_workers(machine, kv_type, n_head, n_head_kv, n_row, window):
    """Fewer tiles than workers: whoever comes last merges; the counters are zero again."""
    n = 3 * SEGMENT_SLOTS + 70
    case = Case(n, n_head, n_head_kv, 32, kv_type=kv_type, window=window)
    masks = plain(*range(n - n_row + 1, n + 1))
    want = case.run(machine, BEST, masks)
    bound, q, y = case.bind(machine, BEST, n_row)
    for n_worker in (2, 3, 5, 4):
        bound.poison()
        bound.put(q, case.q[:n_row])
        bound.run_op("attention", Batch(case.rows(masks)), n_worker=n_worker, workers=reversed(range(n_worker)))
        assert_same_bits(bound.get(y, n_row), want, f"{n_worker} workers")
        assert not bound.executor._counters.any()


def test_segments_are_dealt_out(machine, kv_type):
    """One worker of two leaves the result to the other, and may do so for one row of each of two sequences."""
    case = Case(2 * SEGMENT_SLOTS, 2, 1, 32, kv_type=kv_type)
    bound, q, y = case.bind(machine, BEST, 1)
    bound.put(q, case.q[:1])
    bound.put(y, np.full((1, 64), np.nan, np.float32))
    batch = Batch(case.rows(plain(2 * SEGMENT_SLOTS)))
    bound.run_op("attention", batch, n_worker=2, workers=[1])
    assert np.isnan(bound.get(y, 1)).all()
    bound.run_op("attention", batch, n_worker=2, workers=[0])
    assert_same_bits(bound.get(y, 1), case.run(machine, BEST, plain(2 * SEGMENT_SLOTS)))


@pytest.mark.parametrize("outlier", [0, 100])
def test_quantised_keys_and_values_are_close(machine, outlier):
    """Their error is that of 8 bits: about a hundredth of the result's size; little more where a column is large."""
    plain_case, quantised = Case(300, 4, 2, 64), Case(300, 4, 2, 64, kv_type="q8_0")
    plain_case.k[:, :, 3] += outlier
    quantised.k, quantised.v, quantised.q = plain_case.k, plain_case.v, plain_case.q
    want, got = (case.run(machine, BEST, plain(300, 299, 100)) for case in (plain_case, quantised))
    assert np.abs(got - want).max() < (0.04 if outlier else 0.02) * np.abs(want).max()
    assert np.abs(got - want).max() > 0


@pytest.mark.parametrize("width", [32, 64, 128])
def test_keys_with_large_biases(machine, kv_type, width):
    """Factors of columns: the twin's bits, ancestors among the slots."""
    masks = [*plain(1, 17, 64, 65, 140), (3, 60, ancestors(70, 139, 61)), (0, 0, ancestors(5))]
    check_all(machine, Case(140, 6, 2, width, kv_type=kv_type, large=(3, 7)), masks)


@pytest.mark.parametrize(("n_slot", "softcap", "window"), [(600, 0.0, 0), (70, 5.0, 0), (200, 0.0, 33)])
def test_twin_against_float64(n_slot, softcap, window):
    """Scores are sums of ``width`` fused steps: off by width / 2 * 2**-24 of their terms; weights by that and 2 ulp."""
    case = Case(n_slot, 2, 1, 16, softcap=softcap, window=window)
    q = case.q[0].reshape(2, 16).astype(np.float64)
    k, v = (twin.kept(x[:, 0], "f16", is_key=False).astype(np.float64) for x in (case.k, case.v))
    scores = q @ k.T * case.scale
    magnitude = np.abs(q) @ np.abs(k).T * case.scale
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    if window:
        scores[:, :-window] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    want = weights @ v
    # Relative error of a weight; twice, because the sum below the fraction has it too. Sums are chains of n_slot steps.
    relative = 2 * ((16 / 2 + 4) * magnitude.max() + 8) * 2.0**-24 + n_slot * 2.0**-24 + softcap * 4e-7
    bound = relative * (weights @ np.abs(v))
    got = case.expected(plain(n_slot))[0].reshape(2, 16)
    assert (np.abs(got - want) <= bound).all(), (np.abs(got - want) / bound).max()
