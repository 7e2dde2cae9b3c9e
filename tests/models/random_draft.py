"""Write a draft model that is always wrong: the vocabulary of a model, and one layer of random weights."""

import numpy as np

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.formats.gguf_writer import GgufWriter, TensorEntry
from llmrun.formats.meta_value import MetaValue, read_values

N_EMBD, N_FF, N_HEAD = 64, 128, 2


def write_random_draft(source, target, seed=0):
    """Write a llama model with the vocabulary of ``source``."""
    with GgufFile.open(source) as file:
        metadata = {key: value for key, value in read_values(file.metadata).items() if key.startswith("tokenizer.")}
        n_vocab = len(metadata["tokenizer.ggml.tokens"].value)
    metadata = {
        "general.architecture": MetaValue.text("llama"),
        "llama.block_count": MetaValue.u32(1),
        "llama.context_length": MetaValue.u32(4096),
        "llama.embedding_length": MetaValue.u32(N_EMBD),
        "llama.feed_forward_length": MetaValue.u32(N_FF),
        "llama.attention.head_count": MetaValue.u32(N_HEAD),
        "llama.attention.layer_norm_rms_epsilon": MetaValue.f32(1e-5),
        **metadata,
    }
    shapes = {
        "token_embd.weight": (n_vocab, N_EMBD),
        "output.weight": (n_vocab, N_EMBD),
        "output_norm.weight": (N_EMBD,),
        **{f"blk.0.attn_{part}.weight": (N_EMBD, N_EMBD) for part in ("q", "k", "v", "output")},
        "blk.0.attn_norm.weight": (N_EMBD,),
        "blk.0.ffn_norm.weight": (N_EMBD,),
        "blk.0.ffn_gate.weight": (N_FF, N_EMBD),
        "blk.0.ffn_up.weight": (N_FF, N_EMBD),
        "blk.0.ffn_down.weight": (N_EMBD, N_FF),
    }
    kinds = {name: GgmlType.F16 if len(shape) > 1 else GgmlType.F32 for name, shape in shapes.items()}
    rng = np.random.default_rng(seed)
    with GgufWriter(target, metadata, [TensorEntry(n, s, kinds[n]) for n, s in shapes.items()]) as writer:
        for name, shape in shapes.items():
            dtype = np.float16 if kinds[name] is GgmlType.F16 else np.float32
            writer.write(rng.standard_normal(shape).astype(dtype).tobytes())
        writer.finish()
    return target
