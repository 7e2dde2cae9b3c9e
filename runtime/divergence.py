"""How far one model's predictions are from another's: sums over blocks of the vocabulary, and their statistics.

Only a part of the vocabulary is at hand at a time: neither model's logits are ever kept. What remains of a row is its
maximum, the sum of its exponentials, and the sum of exponentials times differences; all of them are rescaled when a
block has a larger maximum, as in online softmax. Names and formulas of the statistics are those of llama.cpp's
``llama-perplexity --kl-divergence`` (tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..formats.record import Record, fields_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PIECE_BYTES = 1 << 20  # of logits that are looked at together: within a core's cache
LOWEST = -16.0  # log-probabilities at or below this do not count where they come from a file


class SoftmaxRows:
    """The softmax of ``n`` rows of logits, gathered over blocks of the vocabulary.

    Attributes:
        largest: f64 [n], the largest logit so far.
        total: f64 [n], sum of ``exp(logit - largest)``.
        top: i64 [n], id of the largest logit, of equals the lowest.
        at_target: f64 [n], logit of the target.
    """

    def __init__(self, n: int) -> None:
        self.largest = np.full(n, -np.inf)
        self.total = np.zeros(n)
        self.top = np.zeros(n, np.int64)
        self.at_target = np.zeros(n)

    def add(self, rows: slice, start: int, logits: F32, targets: I64) -> tuple[F32, F64]:
        """Take in a block; return ``exp(logit - largest)`` f32 [n, n_column], and what older sums are to be scaled by.

        Args:
            rows: which rows.
            start: token id of the first column.
            logits: f32 [n, n_column].
            targets: token ids, [n].
        """
        top = logits.argmax(axis=1)
        block_largest = np.take_along_axis(logits, top[:, None], axis=1)[:, 0].astype(np.float64)
        old = self.largest[rows]
        is_larger = block_largest > old
        new = np.where(is_larger, block_largest, old)
        scale = np.exp(old - new)
        exponentials: F32 = np.exp(logits - new.astype(np.float32)[:, None])
        self.total[rows] = self.total[rows] * scale + exponentials.sum(axis=1, dtype=np.float64)
        self.top[rows] = np.where(is_larger, start + top, self.top[rows])
        self.largest[rows] = new
        inside = np.flatnonzero((targets >= start) & (targets < start + logits.shape[1]))
        self.at_target[rows][inside] = logits[inside, targets[inside] - start]
        return exponentials, scale

    @property
    def log_sum(self) -> F64:
        """Logarithm of the sum of exponentials of each row, [n]."""
        return self.largest + np.log(self.total)

    @property
    def nll(self) -> F64:
        """Negative log-likelihood of each row's target, [n]."""
        return self.log_sum - self.at_target

    @property
    def top_p(self) -> F64:
        """Probability of the likeliest token of each row, [n]."""
        return 1 / self.total


class PairRows:
    """Rows of two models beside each other.

    Args:
        targets: the text's next token of every row, [n].
        n_thread: threads that add blocks.
    """

    def __init__(self, targets: I64, n_thread: int = 1) -> None:
        self.targets = targets
        n = len(targets)
        self.base, self.other = SoftmaxRows(n), SoftmaxRows(n)
        self._products = np.zeros(n)  # sum of exp(a - largest) * (a - b)
        self._pool = ThreadPoolExecutor(n_thread)

    def add(self, row: int, start: int, base: F32, other: F32) -> None:
        """Take in logits f32 [n, n_column] of rows from ``row`` and token ids from ``start`` on, of both models."""

        def add_piece(first: int, last: int) -> None:
            rows = slice(row + first, row + last)
            a, b, targets = base[first:last], other[first:last], self.targets[rows]
            exponentials, scale = self.base.add(rows, start, a, targets)
            self.other.add(rows, start, b, targets)
            exponentials *= a - b
            self._products[rows] = self._products[rows] * scale + exponentials.sum(axis=1, dtype=np.float64)

        _in_pieces(self._pool, base, add_piece)

    def result(self) -> Divergence:
        """Return the figures of all rows, after the last block."""
        self._pool.shutdown()
        kld = self._products / self.base.total - self.base.log_sum + self.other.log_sum
        return Divergence(
            kld=kld, nll_base=self.base.nll, nll=self.other.nll, top_base=self.base.top, top=self.other.top,
            top_p_base=self.base.top_p, top_p=self.other.top_p,
        )  # fmt: skip


class FileRows:
    """Rows of a model beside log-probabilities from a file, which is cut off and rounded: llama.cpp's formulas.

    Args:
        targets: the text's next token of every row, [n].
        n_thread: threads that add blocks.
    """

    def __init__(self, targets: I64, n_thread: int = 1) -> None:
        self.targets = targets
        n = len(targets)
        self.other = SoftmaxRows(n)
        self._products, self._mass = np.zeros(n), np.zeros(n)
        self._largest, self._top, self._at_target = np.full(n, -np.inf), np.zeros(n, np.int64), np.zeros(n)
        self._pool = ThreadPoolExecutor(n_thread)

    def add(self, row: int, start: int, log_p: F32, other: F32) -> None:
        """Take in log-probabilities and the model's logits, f32 [n, n_column] each."""

        def add_piece(first: int, last: int) -> None:
            rows = slice(row + first, row + last)
            a, b, targets = log_p[first:last], other[first:last], self.targets[rows]
            self.other.add(rows, start, b, targets)
            p = np.where(a > LOWEST, np.exp(a), np.float32(0))
            self._mass[rows] += p.sum(axis=1, dtype=np.float64)
            self._products[rows] += (p * (a - b)).sum(axis=1, dtype=np.float64)
            top = a.argmax(axis=1)
            largest = np.take_along_axis(a, top[:, None], axis=1)[:, 0]
            is_larger = largest > self._largest[rows]
            self._top[rows] = np.where(is_larger, start + top, self._top[rows])
            self._largest[rows] = np.where(is_larger, largest, self._largest[rows])
            inside = np.flatnonzero((targets >= start) & (targets < start + a.shape[1]))
            self._at_target[rows][inside] = a[inside, targets[inside] - start]

        _in_pieces(self._pool, log_p, add_piece)

    def result(self) -> Divergence:
        """Return the figures of all rows, after the last block."""
        self._pool.shutdown()
        return Divergence(
            kld=self._products + self.other.log_sum * self._mass, nll_base=-self._at_target, nll=self.other.nll,
            top_base=self._top, top=self.other.top, top_p_base=np.exp(self._largest), top_p=self.other.top_p,
        )  # fmt: skip


def _in_pieces(pool: ThreadPoolExecutor, block: F32, add: Callable[[int, int], None]) -> None:
    step = max(1, PIECE_BYTES // (4 * block.shape[1]))
    jobs = [pool.submit(add, i, min(i + step, len(block))) for i in range(0, len(block), step)]
    for job in jobs:
        job.result()


class Divergence(Record, kw_only=True):
    """Figures of every row; all arrays are [n_row], in the order of the rows.

    Attributes:
        kld: Kullback-Leibler divergence of the model's prediction from the base's, nats.
        nll_base: -ln p of the text's next token, by the base.
        nll: the same by the model.
        top_base: id of the likeliest token by the base.
        top: the same by the model.
        top_p_base: probability of the base's likeliest token, by the base.
        top_p: probability of the model's likeliest token, by the model.
    """

    kld: F64
    nll_base: F64
    nll: F64
    top_base: I64
    top: I64
    top_p_base: F64
    top_p: F64

    def rows(self, rows: slice | I64) -> Divergence:
        """Return the figures of some rows."""
        return Divergence(**{name: getattr(self, name)[rows] for name in fields_of(Divergence)})

    @property
    def p_diff(self) -> F64:
        """Probability of the text's next token by the model, less that by the base, [n]."""
        result: F64 = np.exp(-self.nll) - np.exp(-self.nll_base)
        return result

    def summary(self) -> dict[str, float]:
        """Return all figures by name; those that end in ``_error`` are standard errors."""
        n = len(self.kld)
        ratio, ratio_error = mean_and_error(self.nll - self.nll_base)
        (nll, nll_error), (base, base_error) = mean_and_error(self.nll), mean_and_error(self.nll_base)
        kld, kld_error = mean_and_error(self.kld)
        p_diff, p_diff_error = mean_and_error(self.p_diff)
        square, square_error = mean_and_error(self.p_diff**2)
        rms = math.sqrt(square)
        same = float((self.top == self.top_base).mean())
        result = {
            "n_token": n,
            "ppl": _exp(nll), "ppl_error": _exp(nll) * nll_error,
            "ppl_base": _exp(base), "ppl_base_error": _exp(base) * base_error,
            "correlation": _correlation(self.nll, self.nll_base),
            "ln_ppl_ratio": ratio, "ln_ppl_ratio_error": ratio_error,
            "kld_mean": kld, "kld_mean_error": kld_error,
            "p_diff_mean": p_diff, "p_diff_mean_error": p_diff_error,
            "p_diff_rms": rms, "p_diff_rms_error": 0.5 * square_error / rms if rms else 0.0,
            "same_top": same, "same_top_error": math.sqrt(same * (1 - same) / max(n - 1, 1)),
        }  # fmt: skip
        for name, values, fractions in (("kld", self.kld, KLD_FRACTIONS), ("p_diff", self.p_diff, P_DIFF_FRACTIONS)):
            quantiles = np.quantile(values, fractions)
            result |= {f"{name}_q{f:g}": float(q) for f, q in zip(fractions, quantiles, strict=True)}
        return result


KLD_FRACTIONS = (1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0)
P_DIFF_FRACTIONS = (1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0)
_NAMES = {1: "Maximum", 0.5: "Median ", 0: "Minimum"}


def report(summary: dict[str, float]) -> list[str]:
    """Return the lines that ``llama-perplexity --kl-divergence`` prints at its end."""
    s = summary
    ratio, ratio_error = _exp(s["ln_ppl_ratio"]), _exp(s["ln_ppl_ratio"]) * s["ln_ppl_ratio_error"]
    covariance = s["correlation"] * s["ppl_error"] * s["ppl_base_error"]
    difference_error = math.sqrt(max(s["ppl_error"] ** 2 + s["ppl_base_error"] ** 2 - 2 * covariance, 0.0))
    kld = [(_NAMES.get(f, f"{100 * f:4.1f}%  "), s[f"kld_q{f:g}"]) for f in KLD_FRACTIONS]
    p_diff = [(_NAMES.get(f, f"{100 * f:4.1f}%  "), 100 * s[f"p_diff_q{f:g}"]) for f in P_DIFF_FRACTIONS]
    return [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {s['ppl']:10.6f} ± {s['ppl_error']:10.6f}",
        f"Mean PPL(base)                : {s['ppl_base']:10.6f} ± {s['ppl_base_error']:10.6f}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * s['correlation']:6.2f}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {s['ln_ppl_ratio']:10.6f} ± {s['ln_ppl_ratio_error']:10.6f}",
        f"Mean PPL(Q)/PPL(base)         : {ratio:10.6f} ± {ratio_error:10.6f}",
        f"Mean PPL(Q)-PPL(base)         : {s['ppl'] - s['ppl_base']:10.6f} ± {difference_error:10.6f}",
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {s['kld_mean']:10.6f} ± {s['kld_mean_error']:10.6f}",
        *(f"{name} KLD: {value:10.6f}" for name, value in kld),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {100 * s['p_diff_mean']:6.3f} ± {100 * s['p_diff_mean_error']:5.3f} %",
        *(f"{name} Δp: {value:6.3f}%" for name, value in p_diff),
        f"RMS Δp    : {100 * s['p_diff_rms']:6.3f} ± {100 * s['p_diff_rms_error']:5.3f} %",
        f"Same top p: {100 * s['same_top']:6.3f} ± {100 * s['same_top_error']:5.3f} %",
    ]


def mean_and_error(values: F64) -> tuple[float, float]:
    """Return a mean and its standard error; 0 for ten values or fewer, as llama.cpp has it."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((values - mean) ** 2) / n
    return mean, math.sqrt(variance / (n - 1)) if n > 10 else 0.0


def _correlation(a: F64, b: F64) -> float:
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else 1.0


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
