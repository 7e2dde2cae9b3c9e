"""llama.cpp's side of ``llmrun bench --vs llama-cpp``: runs tests through llama-cpp-python, as llama-bench does.

A script of its own that imports nothing of llmrun: it may run under another Python, where llama-cpp-python is
installed. It reads one JSON object a line and answers with one: first the settings, then tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

GGML_TYPES = {"f16": 1, "q8_0": 8}  # ggml.h


def sha256_of(path: str) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123  # the script keeps to what every Python has
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def end_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it is gone: it may be stopped then."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def open_answers() -> Callable[[dict[str, Any]], None]:
    """Return a function that answers on what was standard output; the libraries' own words go to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    return answer


class Peer:
    """A model opened by llama.cpp."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import llama_cpp

        self.lib = lib = llama_cpp
        self.n_batch, self.n_threads = settings["n_batch"], settings["n_threads"]
        self.random = random.Random(1)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(settings["path"].encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {settings['path']}")
        params = lib.llama_context_default_params()
        params.n_seq_max, params.n_batch, params.n_ubatch = settings["n_seq"], settings["n_batch"], settings["n_ubatch"]
        params.n_ctx, params.kv_unified = settings["n_seq"] * settings["n_ctx_seq"], False
        params.flash_attn_type = {"on": 1, "auto": -1, "off": 0}[settings["flash_attn"]]
        params.type_k = params.type_v = GGML_TYPES[settings["type_k"]]
        params.n_threads = params.n_threads_batch = self.n_threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.prepared = (0, 0)  # sequences and tokens of each

    def about(self) -> dict[str, Any]:
        """Return what the comparison prints of this side."""
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {self.lib.__version__}",
            "system_info": self.lib.llama_print_system_info().decode("utf-8", "replace").strip(),
        }

    def decode(self, ids: list[int]) -> None:
        """Add tokens to the context."""
        array = (self.lib.llama_token * len(ids))(*ids)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")
        self.lib.llama_synchronize(self.context)

    def decode_in(self, sequences: range, ids: list[int], past: int) -> None:
        """Add ``len(ids)`` tokens to each of several sequences, in one batch; outputs of the last ones are wanted."""
        batch = self.lib.llama_batch_init(len(sequences) * len(ids), 0, 1)
        try:
            batch.n_tokens = 0
            for sequence in sequences:
                for i, token in enumerate(ids):
                    n = batch.n_tokens
                    batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, past + i, 1
                    batch.seq_id[n][0], batch.logits[n] = sequence, i == len(ids) - 1
                    batch.n_tokens += 1
            if self.lib.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            self.lib.llama_synchronize(self.context)
        finally:
            self.lib.llama_batch_free(batch)

    def prompt(self, n: int, past: int, n_seq: int = 1) -> None:
        """Add random tokens to every sequence, a batch at a time."""
        for sequence in range(n_seq):
            done = 0
            while done < n:
                ids = self.ids(min(self.n_batch, n - done), is_start=past + done == 0)
                if n_seq == 1:
                    self.decode(ids)
                else:
                    self.decode_in(range(sequence, sequence + 1), ids, past + done)
                done += len(ids)

    def ids(self, n: int, *, is_start: bool) -> list[int]:
        """Return random ids, begun as the model wants texts begun."""
        n_vocab = self.lib.llama_vocab_n_tokens(self.vocab)
        ids = [self.random.randrange(n_vocab) for _ in range(n)]
        if is_start and self.lib.llama_vocab_get_add_bos(self.vocab):
            ids[0] = self.lib.llama_vocab_bos(self.vocab)
        return ids

    def prepare(self, n_seq: int, depth: int) -> None:
        """Leave the first ``depth`` tokens of every sequence in the context, computing what is not there."""
        if depth and self.prepared == (n_seq, depth):
            for sequence in range(n_seq):
                self.lib.llama_memory_seq_rm(self.memory, sequence, depth, -1)
            return
        self.lib.llama_memory_clear(self.memory, False)
        self.prompt(depth, 0, n_seq)
        self.prepared = n_seq, depth

    def run(self, test: dict[str, Any]) -> dict[str, Any]:
        """Run one test once; a warm-up when it says so."""
        n_seq, past = test["n_seq"], test["n_depth"]
        self.prepare(n_seq, past)
        steps = []
        start = time.perf_counter_ns()
        self.prompt(test["n_prompt"], past, n_seq)
        past += test["n_prompt"]
        for i in range(test["n_gen"]):
            before = time.perf_counter_ns()
            ids = self.ids(1, is_start=past + i == 0)
            if n_seq == 1:
                self.decode(ids)
            else:
                self.decode_in(range(n_seq), ids, past + i)
            steps.append(time.perf_counter_ns() - before)
        return {"total_ns": time.perf_counter_ns() - start, "step_ns": steps}


def main() -> None:
    """Answer settings, then tests, line by line."""
    end_with_parent()
    answer = open_answers()
    settings = json.loads(sys.stdin.readline())
    try:
        import llama_cpp

        silent = llama_cpp.llama_log_callback(_ignore)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    except ImportError as error:
        answer({"error": f"llama-cpp-python is not installed there: {error}", "is_missing": True})
        return
    try:
        peer = Peer(settings)
        answer(peer.about() | {"sha256": sha256_of(settings["path"])})
        for line in sys.stdin:
            answer(peer.run(json.loads(line)))
    except (RuntimeError, OSError, AttributeError, TypeError) as error:
        answer({"error": f"{type(error).__name__}: {error}"})


def _ignore(_level: int, _text: bytes, _user_data: Any) -> None:
    """Take a line of llama.cpp's log."""


if __name__ == "__main__":
    main()
