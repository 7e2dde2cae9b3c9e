"""A stand-in for ``runtime.engine``: replies are queued, tokens are bytes, the template is ChatML.

It keeps to the real engine's protocol, so that the commands can be tested whole without a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrun.runtime.engine import GeneratedToken, GenerationStats, ModelInfo

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]
FIRST_SPECIAL = 256


class FakeTokenizer:
    """One token a byte, and three special tokens."""

    n_vocab = FIRST_SPECIAL + len(SPECIAL)
    bos_id = FIRST_SPECIAL + 2
    eos_id = FIRST_SPECIAL + 1
    eog_ids = frozenset({FIRST_SPECIAL + 1})
    add_bos = False
    add_eos = False

    control_texts = frozenset(SPECIAL)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return self.encode_fragments(self.partition(text, parse_special=parse_special), add_special=add_special)

    def partition(self, text: str, *, parse_special: bool) -> list[str | int]:
        if not parse_special:
            return [text]
        parts = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
        return [FIRST_SPECIAL + SPECIAL.index(part) if part in SPECIAL else part for part in parts if part]

    def encode_fragments(self, fragments: Iterable[str | int], *, add_special: bool) -> list[int]:
        ids = [self.bos_id] if add_special and self.add_bos else []
        for part in fragments:
            ids += [part] if isinstance(part, int) else list(part.encode())
        return ids

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        if token_id < FIRST_SPECIAL:
            return bytes([token_id])
        return SPECIAL[token_id - FIRST_SPECIAL].encode() if special else b""

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.piece(i, special=special) for i in ids).decode("utf-8", "replace")


class FakeTemplate:
    """ChatML; drops the thinking of earlier answers, as Qwen3's template does."""

    source = "{% for message in messages %}…"
    sha256 = "0" * 64

    def __init__(self, tail: str = "") -> None:
        self.tail = tail
        self.kwargs: dict[str, Any] = {}

    def render(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, tools=None, **kwargs: Any
    ) -> str:
        self.kwargs = kwargs
        text = ""
        for message in messages:
            content = message["content"].split("</think>")[-1].strip()
            text += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
        return text + f"<|im_start|>assistant\n{self.tail}" if add_generation_prompt else text

    def encode(self, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
        return FakeTokenizer().encode(self.render(messages, **kwargs), add_special=False, parse_special=True)


class FakeSession:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.stats = GenerationStats()

    def generate(
        self, prompt_ids: Sequence[int], params: Any, *, on_prefill: Callable[[int, int], None] | None = None
    ) -> Iterator[Any]:
        self.engine.prompts.append(self.engine.tokenizer.decode(prompt_ids, special=True))
        self.engine.prompt_ids.append(list(prompt_ids))
        self.engine.params.append(params)
        n_cached = next(
            (i for i, (a, b) in enumerate(zip(self.tokens, prompt_ids, strict=False)) if a != b),
            min(len(self.tokens), len(prompt_ids)),
        )
        self.tokens = list(prompt_ids)
        self.stats = stats = GenerationStats(
            n_prompt=len(prompt_ids), n_cached=n_cached, prefill_s=0.1, first_token_s=0.2, finish_reason="cancelled"
        )
        if on_prefill is not None:
            on_prefill(len(prompt_ids), len(prompt_ids))
        reply = self.engine.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        limit = self.engine.n_ctx - len(prompt_ids)
        limit = limit if params.max_tokens is None else min(limit, params.max_tokens)
        for item in reply if isinstance(reply, list) else [*reply]:
            if isinstance(item, BaseException):
                raise item
            if stats.n_generated >= limit:
                stats.finish_reason = "length"
                return
            token_id = item.encode()[0]
            self.tokens.append(token_id)
            stats.n_generated += 1
            stats.decode_s += 0.01
            logprobs = tuple((token_id - k, -0.5 - k) for k in range(params.n_logprobs)) or None
            yield GeneratedToken(token_id=token_id, text=item, logprobs=logprobs)
        stats.finish_reason = "stop"

    def close(self) -> None:
        """Nothing to give back."""


class FakeEngine:
    """One engine for a test: what it was opened with, what it was asked, and what it is to answer.

    A reply is a string (a token per character), a list of token texts (an exception among them is raised
    there), or an exception (raised during prefill).
    """

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.prompts: list[str] = []
        self.prompt_ids: list[list[int]] = []
        self.params: list[Any] = []
        self.opened: dict[str, Any] = {}
        self.tokenizer = FakeTokenizer()
        self.template: FakeTemplate | None = FakeTemplate()
        self.n_ctx = self.n_ctx_wanted = 2048
        self.n_threads, self.isa = 2, "avx2"
        self.notices: list[str] = []
        self.info = ModelInfo(
            path=Path("tiny.gguf"), name="Tiny", architecture="llama", quant="Q4_0", n_params=135_000_000,
            file_bytes=98_362_432, packed_bytes=95_000_000, n_ctx_train=8192, n_vocab=259, n_layer=2, n_embd=64,
        )  # fmt: skip

    def open(self, path: Path, **options: Any) -> FakeEngine:
        self.opened = {"path": path, **options}
        if not path.exists():
            raise AssertionError("the command did not resolve the model")
        if options["n_ctx"]:
            self.n_ctx = options["n_ctx"]
        return self

    def session(self) -> FakeSession:
        return FakeSession(self)

    def logits(self, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
        """Give every row the same logits: token i has logit i % 7, in blocks of 3 rows."""
        rows = np.tile((np.arange(self.tokenizer.n_vocab) % 7).astype(np.float32), (len(ids) - first, 1))
        for start in range(0, len(rows), 3):
            yield rows[start : start + 3]

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
