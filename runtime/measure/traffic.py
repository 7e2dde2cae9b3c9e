"""What a pass must move and compute: the bytes and operations that a roofline counts.

Bytes are those of the GGUF file, not of the packed weights: every tensor that a decode step streams (embeddings are
only looked up, so they do not count, unless the same tensor is the output matrix) plus the keys and values that
the step reads. Operations are those of the matrices, a multiplication and an addition counting as two; attention
is not integer arithmetic and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...formats.ggml_types import GgmlType, row_bytes
from ...formats.gguf import GgufFile
from ...formats.record import Record
from ..kernels.layout import DEFAULT_KV_TYPE
from ..kv_cache import KvPages
from ..program import Op, Program, Weight
from .bench_row import BenchTest


class Attention(Record):
    """One attention operation: bytes of a slot's keys and values, and how many slots it looks back (0: all)."""

    slot_bytes: int
    window: int

    def read_bytes(self, first: int, n: int) -> int:
        """Return the bytes that rows in slots ``first`` to ``first + n - 1`` of one sequence read at least."""
        start = max(0, first - self.window + 1) if self.window else 0
        return (first + n - start) * self.slot_bytes


class Traffic(Record, kw_only=True):
    """A model's bytes and operations, from its header alone."""

    architecture: str
    quant: str
    n_params: int
    tensor_bytes: int
    body_bytes: int  # every pass
    head_bytes: int  # a pass with wanted outputs
    body_ops: int  # a row
    head_ops: int  # a wanted output
    attentions: tuple[Attention, ...]
    n_body_attention: int  # of them, in every pass; the others in one with wanted outputs
    matrices: tuple[Weight, ...]  # that a decode step streams

    @classmethod
    def of_program(cls, program: Program, *, kv_type: str = DEFAULT_KV_TYPE, **about: int | str) -> Traffic:
        """Return the traffic of a program; ``about`` are the fields that the program does not tell."""
        body_ops, head_ops = program.ops[: program.n_op_body], program.ops[program.n_op_body :]
        body = _streamed(body_ops)
        outputs = [w for w in _streamed(head_ops) if w not in body]
        return cls(
            body_bytes=sum(map(weight_bytes, body)),
            head_bytes=sum(map(weight_bytes, outputs)),
            body_ops=sum(2 * w.n_out * w.n_in for w in body),
            head_ops=sum(2 * w.n_out * w.n_in for w in outputs),
            attentions=tuple(_attention(op, kv_type) for op in program.ops if op.kind == "attention"),
            n_body_attention=sum(op.kind == "attention" for op in body_ops),
            matrices=tuple(w for w in (*body, *outputs) if w.n_out),
            **about,  # type: ignore[arg-type]
        )

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that one decode step streams."""
        return self.body_bytes + self.head_bytes

    def kv_bytes(self, first: int, n: int, *, has_output: bool = True) -> int:
        """Return the bytes of keys and values that a pass over slots ``first`` to ``first + n - 1`` reads."""
        attentions = self.attentions if has_output else self.attentions[: self.n_body_attention]
        return sum(a.read_bytes(first, n) for a in attentions)

    def test_bytes(self, test: BenchTest, passes: Sequence[int]) -> int:
        """Return the bytes that one repetition of a test moves at least.

        Args:
            test: the test.
            passes: tokens of each pass of its prompt.
        """
        total, past = 0, test.n_depth
        for i, n in enumerate(passes, 1):
            total += test.n_seq * (self.body_bytes + self.kv_bytes(past, n, has_output=i == len(passes)))
            past += n
        if passes:
            total += test.n_seq * self.head_bytes
        for slot in range(past, past + test.n_gen):
            total += self.step_weight_bytes + test.n_seq * self.kv_bytes(slot, 1)
        return total

    def test_ops(self, test: BenchTest) -> int:
        """Return the matrices' operations of one repetition of a test."""
        one = (test.n_prompt + test.n_gen) * self.body_ops + (test.n_gen + (test.n_prompt > 0)) * self.head_ops
        return one * test.n_seq


def cut_prompt(n_prompt: int, n_batch: int, n_ubatch: int) -> list[int]:
    """Return the tokens of each pass of a prompt."""
    passes = []
    for start in range(0, n_prompt, n_batch):
        piece = min(n_batch, n_prompt - start)
        passes += [min(n_ubatch, piece - i) for i in range(0, piece, n_ubatch)]
    return passes


def read_traffic(path: Path, kv_type: str = DEFAULT_KV_TYPE) -> Traffic:
    """Return the traffic of a model file with a KV cache of some type.

    Raises:
        LlmrunError: the file is not a model that llmrun runs.
    """
    from ..engine import load_program, quant_name
    from ..weights import GgufWeights

    file = GgufFile.open(path)
    try:
        weights = GgufWeights(file)
        model, program = load_program(file, weights, None)
        return Traffic.of_program(
            program,
            kv_type=kv_type,
            architecture=model.hparams.arch,
            quant=quant_name(file),
            n_params=weights.n_params(),
            tensor_bytes=sum(info.n_bytes for info in file.tensors.values()),
        )
    finally:
        file.close()


def _streamed(ops: Sequence[Op]) -> list[Weight]:
    """Return every weight that the operations read as a whole."""
    return list(dict.fromkeys(w for op in ops if op.kind != "embed" for w in op.weights))


def weight_bytes(weight: Weight, ggml_type: GgmlType | None = None) -> int:
    """Return a weight's bytes as the file has it, or as it would be with another type."""
    return max(1, weight.n_out) * row_bytes(ggml_type or GgmlType[weight.file_type], weight.n_in)


def _attention(op: Op, kv_type: str) -> Attention:
    q, a = op.reads[0], op.attributes
    slot_bytes = KvPages.slot_bytes(1, a["n_head_kv"], q.n_col // a["n_head"], kv_type)
    return Attention(slot_bytes, int(a["window"]))
