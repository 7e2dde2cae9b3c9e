"""Runs the tests of a bench on an opened engine: random tokens, no tokenizer, no sampler, as llama-bench does."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from ..batch import Batch, Row
from ..kv_cache import KvSequence
from .bench_row import BenchTest, Sample

if TYPE_CHECKING:
    from ..engine import Engine


class Runner:
    """Repeats tests. What was computed before the timed part is kept and used again by tests of the same depth.

    Tests that differ only in their sequences may take turns: the fewer are the first of the many.

    Args:
        engine: opened with room for the largest test (``BenchTest.n_slot``).
        n_batch: tokens that a prompt is given in at a time; each such piece is cut into passes of the engine's size.
        seed: of the random tokens.
    """

    def __init__(self, engine: Engine, *, n_batch: int = 2048, seed: int = 1) -> None:
        self._engine, self._n_batch = engine, n_batch
        self._random = random.Random(seed)
        self._sequences: list[KvSequence] = []
        self._depth: tuple[int, bool] | None = None  # tokens of every sequence, and whether they are shared
        self._length: tuple[int, int] | None = None  # of the timed part
        self._prefill_ns = 0  # of one sequence's tokens before the timed part
        self.depth_ns: int | None = None  # the same of all sequences of the last test

    def prepare(self, test: BenchTest) -> None:
        """Fill every sequence up to the test's depth."""
        depth, length = (test.n_depth, test.is_shared), (test.n_prompt, test.n_gen)
        if self._depth != depth:
            self.close()
            self._depth = depth
        elif self._length != length:  # there is room for the longest test alone
            self._keep(test.n_seq)
        self._length = length
        for sequence in self._sequences:
            sequence.rollback(test.n_depth)
        for _ in range(len(self._sequences), test.n_seq):
            self._add(test)
        n_prefill = 1 if test.is_shared else test.n_seq
        self.depth_ns = self._prefill_ns * n_prefill if test.n_depth else None

    def _add(self, test: BenchTest) -> None:
        """Add a sequence at the test's depth."""
        if test.is_shared and self._sequences:
            self._sequences.append(self._sequences[0].fork())
            return
        self._sequences.append(KvSequence(self._engine.pages, self._engine.n_ctx))
        start = time.perf_counter_ns()
        self._prompt(self._sequences[-1], test.n_depth)
        self._prefill_ns = time.perf_counter_ns() - start

    def _keep(self, n: int) -> None:
        for sequence in self._sequences[n:]:
            sequence.close()
        del self._sequences[n:]

    def warm_up(self, test: BenchTest) -> None:
        """Run the prompt once and one decode step, untimed."""
        self.prepare(test)
        if test.n_prompt:
            for sequence in self._sequences[: test.n_seq]:
                self._prompt(sequence, test.n_prompt)
        if test.n_gen:
            self._step(test.n_seq)

    def sample(self, test: BenchTest) -> Sample:
        """Run the test once."""
        self.prepare(test)
        prompt_ns, first_ns = 0, None
        if test.n_prompt:
            start = time.perf_counter_ns()
            for sequence in self._sequences[: test.n_seq]:
                self._prompt(sequence, test.n_prompt)
            prompt_ns = time.perf_counter_ns() - start
            self._engine.executor.output("logits", 1)[0].argmax()
            first_ns = time.perf_counter_ns() - start
        steps = []
        for _ in range(test.n_gen):
            before = time.perf_counter_ns()
            self._step(test.n_seq)
            steps.append(time.perf_counter_ns() - before)
        total = prompt_ns + sum(steps)
        return Sample(total_ns=total, prompt_ns=prompt_ns, first_token_ns=first_ns, step_ns=tuple(steps))

    def close(self) -> None:
        """Give all pages back."""
        self._keep(0)
        self._depth = None

    def _ids(self, n: int, *, is_start: bool) -> list[int]:
        """Return random ids; a text starts with the model's own first token, where it has one."""
        tokenizer = self._engine.tokenizer
        ids = [self._random.randrange(tokenizer.n_vocab) for _ in range(n)]
        if is_start and ids and tokenizer.add_bos and tokenizer.bos_id is not None:
            ids[0] = tokenizer.bos_id
        return ids

    def _prompt(self, sequence: KvSequence, n_token: int) -> None:
        """Add tokens to a sequence; the logits after the last of each piece are computed, as llama-bench asks."""
        engine = self._engine
        done = 0
        while done < n_token:
            piece = self._ids(min(self._n_batch, n_token - done), is_start=sequence.n_past == 0)
            for start in range(0, len(piece), engine.executor.n_tok):
                ids = piece[start : start + engine.executor.n_tok]
                is_last = start + len(ids) == len(piece)
                with engine.lock:
                    engine.run_tokens(sequence, ids, [len(ids) - 1] if is_last else [])
            done += len(piece)

    def _step(self, n_seq: int) -> None:
        """Decode one token of each of the first sequences in one pass."""
        engine = self._engine
        if n_seq == 1:
            sequence = self._sequences[0]
            ids = self._ids(1, is_start=sequence.n_past == 0)
            with engine.lock:
                engine.run_tokens(sequence, ids, [0])
            return
        rows = []
        for sequence in self._sequences[:n_seq]:
            slot = sequence.n_past
            sequence.append(1)
            rows.append(
                Row(
                    token_id=self._ids(1, is_start=slot == 0)[0],
                    page_table=sequence.page_table,
                    slot=slot,
                    position=slot,
                    visible_stop=slot + 1,
                    has_output=True,
                )
            )
        with engine.lock:
            engine.run_batch(Batch(rows))
