"""Write drafts that are always wrong: a model, or an EAGLE-3 head, for another model, of random weights."""

import numpy as np

from llmrun.formats.ggml_types import GgmlType
from llmrun.formats.gguf import GgufFile
from llmrun.formats.gguf_writer import GgufWriter, TensorEntry
from llmrun.formats.meta_value import MetaValue, read_values
from llmrun.formats.metadata import ValueType

N_EMBD, N_FF, N_HEAD = 64, 128, 2


def write_random_draft(source, target, seed=0):
    """Write a llama model with the vocabulary of ``source``."""
    words, n_vocab, _ = _read(source)
    metadata = {
        "general.architecture": MetaValue.text("llama"),
        "llama.block_count": MetaValue.u32(1),
        "llama.context_length": MetaValue.u32(4096),
        "llama.embedding_length": MetaValue.u32(N_EMBD),
        "llama.feed_forward_length": MetaValue.u32(N_FF),
        "llama.attention.head_count": MetaValue.u32(N_HEAD),
        "llama.attention.layer_norm_rms_epsilon": MetaValue.f32(1e-5),
        **words,
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
    return _write(target, metadata, shapes, {}, seed)


def write_random_head(source, target, *, n_ff=256, n_draft=None, n_embd=None, seed=0):
    """Write an EAGLE-3 head for ``source``.

    Args:
        source: a model.
        target: path of the head.
        n_ff: width of its feed-forward part.
        n_draft: tokens that it drafts; None: all, by the model's own output matrix.
        n_embd: its width, with embeddings of its own; None: the model's, with the model's embeddings.
        seed: of the weights.
    """
    words, n_vocab, shape = _read(source)
    n_wide = n_embd or shape["embedding_length"]
    n_layer, n_head = shape["block_count"], max(1, n_wide // 64)
    metadata = {
        "general.architecture": MetaValue.text("eagle3"),
        "eagle3.block_count": MetaValue.u32(1),
        "eagle3.context_length": MetaValue.u32(4096),
        "eagle3.embedding_length": MetaValue.u32(n_wide),
        "eagle3.feed_forward_length": MetaValue.u32(n_ff),
        "eagle3.attention.head_count": MetaValue.u32(n_head),
        "eagle3.attention.key_length": MetaValue.u32(64),
        "eagle3.attention.value_length": MetaValue.u32(64),
        "eagle3.attention.layer_norm_rms_epsilon": MetaValue.f32(1e-5),
        "eagle3.target_layers": MetaValue.numbers(ValueType.I32, [2, n_layer // 2, n_layer - 3]),
        "eagle3.target_hidden_size": MetaValue.u32(shape["embedding_length"]),
        **words,
    }
    q = 64 * n_head
    shapes = {
        "fc.weight": (n_wide, 3 * shape["embedding_length"]),
        "output_norm.weight": (n_wide,),
        **{f"blk.0.{name}.weight": (n_wide,) for name in ("attn_norm", "attn_norm_2", "ffn_norm")},
        **{f"blk.0.attn_{part}.weight": (q, 2 * n_wide) for part in ("q", "k", "v")},
        "blk.0.attn_output.weight": (n_wide, q),
        "blk.0.ffn_gate.weight": (n_ff, n_wide),
        "blk.0.ffn_up.weight": (n_ff, n_wide),
        "blk.0.ffn_down.weight": (n_wide, n_ff),
    }
    ids = {}
    if n_embd is not None:
        shapes["token_embd.weight"] = (n_vocab, n_wide)
    if n_draft is not None:
        shapes["output.weight"] = (n_draft, n_wide)
        ids["d2t"] = np.sort(np.random.default_rng(seed).permutation(n_vocab)[:n_draft]).astype(np.int64)
    return _write(target, metadata, shapes, ids, seed)


def _read(source):
    """Return (metadata of the tokenizer, number of tokens, the architecture's integers) of a model."""
    with GgufFile.open(source) as file:
        values = read_values(file.metadata)
        words = {key: value for key, value in values.items() if key.startswith("tokenizer.")}
        start = values["general.architecture"].value.decode() + "."
        shape = {key.removeprefix(start): value.value for key, value in values.items() if key.startswith(start)}
        return words, len(words["tokenizer.ggml.tokens"].value), shape


def _write(target, metadata, shapes, ids, seed):
    kinds = {name: GgmlType.F16 if len(shape) > 1 else GgmlType.F32 for name, shape in shapes.items()}
    entries = [TensorEntry(n, s, kinds[n]) for n, s in shapes.items()]
    entries += [TensorEntry(name, values.shape, GgmlType.I64) for name, values in ids.items()]
    rng = np.random.default_rng(seed)
    with GgufWriter(target, metadata, entries) as writer:
        for name, shape in shapes.items():
            dtype = np.float16 if kinds[name] is GgmlType.F16 else np.float32
            writer.write(rng.standard_normal(shape, np.float32).astype(dtype).tobytes())
        for values in ids.values():
            writer.write(values.tobytes())
        writer.finish()
    return target
