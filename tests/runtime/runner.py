"""A tiny model run by the threaded executor, without engine, tokenizer or sampling: token ids in, logits out."""

import numpy as np

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.batch import Batch
from llmrun.runtime.engine import load_program
from llmrun.runtime.executor.checked import CheckedExecutor
from llmrun.runtime.executor.threaded import ThreadedExecutor
from llmrun.runtime.kv_cache import KvPages, KvSequence
from llmrun.runtime.weights import GgufWeights

from .machine import BEST

N_VOCAB = 297  # ordinary tokens of the tiny models


class Runner:
    """One program in memory.

    Args:
        machine: the session's machine.
        path: a GGUF file.
        target_name: which kernels.
        n_thread: threads of the team.
        is_fused: join operations.
        n_ctx: slots over all sequences; also what long-rope models look at.
        n_tok: most rows of a pass, all of which may have outputs.
        kv_type: how keys and values are kept.
    """

    def __init__(
        self, machine, path, target_name=BEST, n_thread=1, *, is_fused=True, n_ctx=256, n_tok=128, kv_type="f16"
    ):
        self.n_tok, self.n_ctx = n_tok, n_ctx
        self._file = GgufFile.open(path)
        self.weights = GgufWeights(self._file, 1)
        self.model, self.program = load_program(self._file, self.weights, n_ctx, is_fused=is_fused)
        hp = self.model.hparams
        self.pages = KvPages(hp.n_layer, hp.n_head_kv, hp.n_embd_head, n_ctx, kv_type)
        self.team = machine.team(target_name, n_thread)
        kernels = machine.kernels(target_name)
        self.executor = ThreadedExecutor(
            self.program, self.weights, self.pages, kernels, self.team, n_tok=n_tok, n_out=n_tok
        )

    def close(self):
        self._file.close()

    def sequence(self):
        """Return an empty sequence."""
        return KvSequence(self.pages, self.n_ctx)

    def extend(self, sequence, ids, *, chunk=None, is_long=False):
        """Append tokens in passes of ``chunk`` and return the logits after each of them, f32 [n_tok, n_vocab]."""
        step = min(chunk or len(ids), self.n_tok)
        rows = []
        for i in range(0, len(ids), step):
            part = ids[i : i + step]
            past = sequence.n_past
            sequence.append(len(part))
            self.executor.run(Batch.of_tokens(sequence.page_table, past, part, range(len(part))), is_long=is_long)
            rows.append(self.executor.output("logits", len(part)).copy())
        return np.concatenate(rows)

    def logits(self, ids, *, chunk=None):
        """Return the logits after each token of a fresh sequence, f32 [n_tok, n_vocab]."""
        sequence = self.sequence()
        try:
            return self.extend(sequence, ids, chunk=chunk)
        finally:
            sequence.close()

    def run_rows(self, rows):
        """Run one pass over any rows and return the logits of those with outputs."""
        batch = Batch(rows)
        self.executor.run(batch)
        return self.executor.output("logits", batch.n_out).copy()


def checked_logits(path, ids, *, is_fused=False, is_exact=True, n_ctx=256, kv_type="f16"):
    """Return what the checked interpreter makes of one fresh sequence, f32 [n_tok, n_vocab]."""
    with GgufFile.open(path) as file:
        weights = GgufWeights(file, 1)
        _, program = load_program(file, weights, n_ctx, is_fused=is_fused)
        checked = CheckedExecutor(program, weights, len(ids), is_exact=is_exact, kv_type=kv_type)
        table = np.arange(-(-len(ids) // 64), dtype=np.int64)
        checked.run(Batch.of_tokens(table, 0, ids, range(len(ids))))
        return checked.output("logits").copy()
