"""A checkpoint, converted and run: the logits of transformers, and in every bit those of the hand-made file."""

from pathlib import Path

import numpy as np
import pytest

from llmrun.quant.convert.checkpoint import HfSource

from ...hf_tiny import write_hf_folder
from ...tiny_gguf import write_gguf
from ..bits import assert_same_bits
from ..machine import BEST
from ..runner import Runner

GOLDENS = Path(__file__).parents[2] / "goldens"


def converted_path(folder, name):
    """Convert a tiny checkpoint to a F32 GGUF file."""
    source = HfSource.open(write_hf_folder(folder / "hf", name))
    metadata = {key: meta.value for key, meta in source.metadata.items()}
    tensors = {t.name: t.read_rows(0, t.n_rows).reshape(t.shape) for t in source.tensors}
    source.close()
    return write_gguf(folder / f"{name}.gguf", metadata, tensors)


@pytest.mark.parametrize("name", ["llama_llama3", "mistral", "qwen3", "gemma3", "phi3_partial"])
def test_a_converted_checkpoint_gives_the_logits_of_transformers(name, machine, make_runner, tmp_path):
    """Within what the f16 KV cache costs at most, 0.024: see ``test_goldens.py``, which derives it."""
    golden = np.load(GOLDENS / f"{name}.npz")
    ids, n_ctx = golden["ids"].tolist(), int(golden["n_ctx"])
    runner = Runner(machine, converted_path(tmp_path, name), BEST, 2, n_ctx=n_ctx, n_tok=len(ids))
    got = runner.logits(ids)
    runner.close()
    assert np.abs(got[golden["pos"]] - golden["logits"]).max() < 0.024
    assert_same_bits(got, make_runner(name, n_thread=2, n_ctx=n_ctx, n_tok=len(ids)).logits(ids))
