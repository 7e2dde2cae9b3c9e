"""One golden: what the model says after some hundred positions of a text, by llama.cpp in float32.

Stored are each position's 64 likeliest tokens and what remains for all others together. README.md lists the arrays.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "goldens"
N_TOP = 64
STEPS_PER_NAT = 4096  # log-probabilities are stored as uint16: 0 to -16 nats
FLOOR = 16.0  # llama-perplexity's files raise whatever is further below the likeliest token: so do we on both sides


@dataclass(frozen=True)
class Golden:
    """The truth of one model and text, and how far llama.cpp's own quantised inference is from it.

    Attributes:
        sha256: of the model's file.
        tokens: int32 [n_chunk, n_ctx], the text; each chunk is a sequence of its own.
        bos: fed in place of each chunk's first token; -1 where the vocabulary asks for none.
        first: first scored position; the last one is n_ctx - 2.
        top: uint32 [n_row, 64], ids of the likeliest tokens, the likeliest first.
        log_p: uint16 [n_row, 64], -4096 ln p of them.
        rest: float32 [n_row], probability of all other tokens.
        target_nll: float32 [n_row], -ln p of the text's next token; NaN where llama.cpp's file has only a bound.
        llama_cpp: float64 [n_row, 3], ``figures`` of llama.cpp on the quantised file.
        source: how the truth was made.
    """

    sha256: str
    tokens: np.ndarray
    bos: int
    first: int
    top: np.ndarray
    log_p: np.ndarray
    rest: np.ndarray
    target_nll: np.ndarray
    llama_cpp: np.ndarray
    source: str

    @classmethod
    def load(cls, name):
        """Read ``goldens/<name>.npz``."""
        with np.load(FOLDER / f"{name}.npz") as data:
            values = {f.name: data[f.name] for f in fields(cls)}
        return cls(**{key: value.item() if value.ndim == 0 else value for key, value in values.items()})

    def save(self, name):
        """Write ``goldens/<name>.npz``."""
        FOLDER.mkdir(exist_ok=True)
        np.savez_compressed(FOLDER / f"{name}.npz", **asdict(self))

    @property
    def fed(self):
        """Token ids that the model sees: [n_chunk, n_ctx]."""
        fed = self.tokens.copy()
        if self.bos >= 0:
            fed[:, 0] = self.bos
        return fed

    @property
    def n_scored(self):
        """Rows of one chunk."""
        return self.tokens.shape[1] - 1 - self.first

    @property
    def targets(self):
        """The text's next token of every row: [n_row]."""
        return self.tokens[:, self.first + 1 :].reshape(-1)


def log_softmax(logits):
    """Return log-probabilities f64 [n, n_vocab] of logits f32 [n, n_vocab]."""
    shifted = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def keep_top(log_p):
    """Return (ids, -4096 ln p, rest) as a golden stores them, of f32 [n, n_vocab] log-probabilities."""
    top = np.argsort(-log_p, axis=1, kind="stable")[:, :N_TOP]  # [n, 64]; of equals the lower id first, as argmax
    of_top = np.take_along_axis(log_p, top, axis=1)
    stored = np.rint(-STEPS_PER_NAT * of_top).clip(0, 65535).astype(np.uint16)
    return top.astype(np.uint32), stored, _sum_of_others(log_p, top).astype(np.float32)


def _sum_of_others(log_p, top):
    """Return the probability of all but the top tokens, each at least ``FLOOR`` below the likeliest: [n]."""
    p = np.exp(np.maximum(log_p, log_p.max(axis=1, keepdims=True) - FLOOR).astype(np.float64))
    np.put_along_axis(p, top, 0.0, axis=1)
    return p.sum(axis=1)


def figures(golden, row, log_q):
    """Compare log-probabilities with some of a golden's rows.

    Args:
        golden: the truth.
        row: its first row that is compared.
        log_q: f32 or f64 [n, n_vocab].

    Returns:
        float64 [n, 3]: the Kullback-Leibler divergence from the truth over 65 classes (the 64 tokens that
        are likeliest by the truth, and all others together: never more than over the whole vocabulary);
        1 where the likeliest token is another one, else 0; -ln q of the text's next token.
    """
    rows = slice(row, row + len(log_q))
    top = golden.top[rows].astype(np.int64)
    p = np.column_stack([np.exp(golden.log_p[rows] / -STEPS_PER_NAT), golden.rest[rows]])
    q = np.column_stack([np.exp(np.take_along_axis(log_q, top, axis=1), dtype=np.float64), _sum_of_others(log_q, top)])
    p /= p.sum(axis=1, keepdims=True)  # the stored logarithms are rounded, and the floor adds a little
    q /= q.sum(axis=1, keepdims=True)
    divergence = (p * np.log(p / q)).sum(axis=1)
    differs = log_q.argmax(axis=1) != top[:, 0]
    nll = -np.take_along_axis(log_q, golden.targets[rows, None], axis=1)[:, 0]
    return np.column_stack([divergence, differs, nll]).astype(np.float64)


@dataclass(frozen=True)
class Summary:
    """Means of ``figures`` over all rows of a golden, with standard errors."""

    divergence: float
    divergence_error: float
    n_differ: int  # rows whose likeliest token differs
    log_ratio: float  # ln(perplexity / perplexity of the truth)
    log_ratio_error: float

    @classmethod
    def of(cls, golden, values):
        """Summarise ``figures`` of all rows: [n_row, 3]."""
        delta = (values[:, 2] - golden.target_nll)[~np.isnan(golden.target_nll)]
        return cls(
            divergence=float(values[:, 0].mean()),
            divergence_error=float(values[:, 0].std() / np.sqrt(len(values))),
            n_differ=int(values[:, 1].sum()),
            log_ratio=float(delta.mean()),
            log_ratio_error=float(delta.std() / np.sqrt(len(delta))),
        )
