"""Hugging Face checkpoints of the tiny models: the tensors and files that transformers would write, without it.

``tests/goldens/hf/<name>.json`` is the config.json that transformers saved for the network; tensors follow from
``tiny_models.tensors`` by undoing what GGUF changes; ``tests/goldens/make_goldens.py`` has loaded them into
transformers' own classes, strictly, and computed the golden logits with them.
"""

import json
from pathlib import Path

import numpy as np

from .tiny_models import CHAT_TEMPLATE, MODELS, SPECIAL, tensors, vocabulary

CONFIGS = Path(__file__).parent / "goldens" / "hf"

DTYPES = {
    "<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16", "|i1": "I8", "|u1": "U8",
}  # fmt: skip

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HF_NAMES_GEMMA = HF_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
HF_NAMES_PHI3 = HF_NAMES | {"ffn_up": "mlp.gate_up_proj"}


def hf_name(tensor, arch):
    """Return the name in a Hugging Face checkpoint of the GGUF tensor ``tensor``."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem, kind = tensor.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, layer, part = stem.split(".")
    table = HF_NAMES_GEMMA if arch.startswith("gemma") else HF_NAMES_PHI3 if arch == "phi3" else HF_NAMES
    return f"model.layers.{layer}.{table[part]}.{kind}"


def split_halves(w, n_head):
    """Undo the row order of GGUF's llama q and k: rope pairs (2i, 2i+1) become (i, i + half)."""
    return w.reshape(n_head, -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def hf_tensors(name):
    """Return the float32 tensors of a tiny model as transformers names and orders them."""
    model = MODELS[name]
    result = {}
    for tensor, value in tensors(name).items():
        if tensor.startswith("rope_"):
            continue
        if model.arch == "llama" and ".attn_q." in tensor:
            value = split_halves(value, model.n_head)
        elif model.arch == "llama" and ".attn_k." in tensor:
            value = split_halves(value, model.n_head_kv)
        elif model.arch.startswith("gemma") and tensor.endswith("norm.weight"):
            value = value - 1
        result[hf_name(tensor, model.arch)] = np.ascontiguousarray(value)
    return result


def safetensors_bytes(arrays, notes=None):
    """Return a safetensors file: name -> array, or (dtype name, array of the bytes' storage)."""
    header, data = {}, []
    at = 0
    if notes is not None:
        header["__metadata__"] = notes
    for name, value in arrays.items():
        dtype, array = value if isinstance(value, tuple) else (DTYPES[value.dtype.str], value)
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def as_bf16(value):
    """Return float32 weights cut to bfloat16, as ``safetensors_bytes`` takes them."""
    return "BF16", (value.view(np.uint32) >> 16).astype(np.uint16)


def tokenizer_json():
    """Return the tiny byte-level tokenizer as a tokenizer.json."""
    tokens, _, merges = vocabulary()
    n_ordinary = len(tokens) - len(SPECIAL)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n_ordinary + i, "content": text, **flags} for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens[:n_ordinary])},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def write_json(path, value):
    """Write a JSON file."""
    path.write_text(json.dumps(value))


def hf_config(name):
    """Return what transformers saved as the config.json of a tiny model."""
    return json.loads((CONFIGS / f"{name}.json").read_text())


def write_hf_folder(folder, name, *, arrays=None, config=None, n_shard=1, tokenizer=None):
    """Write a checkpoint and return its folder.

    Args:
        folder: to make.
        name: a key of ``MODELS`` that has a configuration.
        arrays: tensors in place of the model's.
        config: values that change in config.json; None removes one.
        n_shard: with more than one, an index is written too.
        tokenizer: tokenizer.json in place of the tiny one.
    """
    folder.mkdir(parents=True)
    values = hf_config(name) | (config or {})
    write_json(folder / "config.json", {key: value for key, value in values.items() if value is not None})
    write_json(folder / "generation_config.json", {"eos_token_id": [298, 300], "do_sample": True, "temperature": 0.6})
    write_json(folder / "tokenizer.json", tokenizer or tokenizer_json())
    write_json(folder / "tokenizer_config.json", {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_weights(folder, hf_tensors(name) if arrays is None else arrays, n_shard)
    return folder


def write_weights(folder, arrays, n_shard=1):
    """Write model.safetensors, or shards and their index."""
    if n_shard == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays, {"format": "pt"}))
        return
    weight_map = {}
    for i in range(n_shard):
        file_name = f"model-{i + 1:05d}-of-{n_shard:05d}.safetensors"
        part = {key: arrays[key] for key in list(arrays)[i::n_shard]}
        (folder / file_name).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, file_name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": weight_map})
