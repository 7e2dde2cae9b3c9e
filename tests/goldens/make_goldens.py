"""Make the golden logits of the tiny models with PyTorch and Hugging Face ``transformers``.

A developer's tool: the tests read only what it writes (see README.md beside it). Run it as

    python tests/goldens/make_goldens.py [NAME ...]

in an environment with ``torch`` and ``transformers`` (and ``gguf``, ``numpy``).
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.hf_tiny import CONFIGS, hf_tensors  # noqa: E402
from tests.tiny_models import MODELS, N_VOCAB, TinyModel  # noqa: E402

# file name -> (model, tokens, stored rows, context size that the golden holds for). Only the long-rope
# networks care about the last: their factors depend on it (llama.cpp) or on the length (transformers).
GOLDENS: dict[str, tuple[str, int, int, int]] = {
    name: (name, 24 if name == "gemma2_27b" else 40, 24 if name == "gemma2_27b" else 40, 256)
    for name in MODELS
    if not name.endswith("_256")
}
for _name in ("phi3_longrope", "phi3_partial"):
    GOLDENS[_name + "_long"] = (_name, 300, 24, 512)

ROPE_KEYS = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}


def token_ids(name: str, n_tok: int) -> np.ndarray:
    """Return int32 [n_tok] random token ids, no control tokens among them."""
    words = np.random.PCG64(zlib.crc32(f"{name}/ids".encode())).random_raw(n_tok)
    return (words % np.uint64(297)).astype(np.int32)


def rope_parameters(model: TinyModel) -> dict[str, Any]:
    """Translate GGUF's ``rope.*`` metadata to transformers' ``rope_parameters``."""
    theta = 10000.0 if model.rope_theta is None else model.rope_theta
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = model.extra.get("rope.scaling.type")
    if kind is not None:
        rope["rope_type"] = kind
        for gguf_key, hf_key in ROPE_KEYS.items():
            value = model.extra.get(f"rope.scaling.{gguf_key}")
            if value is not None:
                rope[hf_key] = value
    if model.llama3_rope is not None:
        rope |= {"rope_type": "llama3", "original_max_position_embeddings": model.llama3_rope["n_ctx_orig"]}
        rope |= {k: model.llama3_rope[k] for k in ("factor", "low_freq_factor", "high_freq_factor")}
    if model.longrope_factors is not None:
        long, short = model.longrope_factors
        rope |= {"rope_type": "longrope", "long_factor": list(long), "short_factor": list(short)}
        rope["original_max_position_embeddings"] = model.extra["rope.scaling.original_context_length"]
    if model.arch == "phi3":
        assert model.n_rot is not None
        rope["partial_rotary_factor"] = model.n_rot / model.n_embd_head
    if model.arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": model.extra.get("rope.freq_base_swa", 10000.0)}
        return {"full_attention": rope, "sliding_attention": local}
    return rope


def hf_config(name: str, model: TinyModel) -> transformers.PretrainedConfig:
    """Return the transformers configuration of the same network."""
    common: dict[str, Any] = {
        "vocab_size": N_VOCAB,
        "hidden_size": model.n_embd,
        "intermediate_size": model.n_ff,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_head_kv,
        "max_position_embeddings": model.n_ctx_train,
        "rms_norm_eps": model.norm_rms_eps,
        "tie_word_embeddings": model.is_tied,
        "rope_parameters": rope_parameters(model),
        "bos_token_id": 297,
        "eos_token_id": 298,
        "pad_token_id": 298,
        "attn_implementation": "eager",
    }
    window = model.extra.get("attention.sliding_window")
    if name == "mistral":
        return transformers.MistralConfig(**common, head_dim=model.n_embd_head, sliding_window=None)
    if model.arch == "llama":
        return transformers.LlamaConfig(**common, head_dim=model.n_embd_head)
    if model.arch == "qwen2":
        return transformers.Qwen2Config(**common, use_sliding_window=False)
    if model.arch == "qwen3":
        return transformers.Qwen3Config(**common, head_dim=model.n_embd_head, attention_bias=False)
    if model.arch == "phi3":
        original = model.extra["rope.scaling.original_context_length"]
        return transformers.Phi3Config(
            **common, original_max_position_embeddings=original, sliding_window=window or None
        )
    scale_width = model.n_embd // model.n_head if name.endswith("_27b") else model.n_embd_head
    common |= {"head_dim": model.n_embd_head, "sliding_window": window, "query_pre_attn_scalar": scale_width}
    common |= {"hidden_activation": "gelu_pytorch_tanh"}
    if model.arch == "gemma2":
        return transformers.Gemma2Config(
            **common,
            attn_logit_softcapping=model.extra["attn_logit_softcapping"],
            final_logit_softcapping=model.extra["final_logit_softcapping"],
        )
    return transformers.Gemma3TextConfig(**common, sliding_window_pattern=6)


def hf_model(name: str) -> torch.nn.Module:
    """Return the transformers model with the tiny model's weights, float32 and in evaluation mode."""
    model = MODELS[name]
    network = transformers.AutoModelForCausalLM.from_config(hf_config(name, model)).float().eval()
    state = {tensor: torch.from_numpy(value) for tensor, value in hf_tensors(name).items()}
    result = network.load_state_dict(state, strict=False)
    assert not result.unexpected_keys, result.unexpected_keys
    assert set(result.missing_keys) <= {"lm_head.weight"}, result.missing_keys
    assert model.is_tied or not result.missing_keys
    network.tie_weights()
    return network


def main() -> None:
    torch.set_grad_enabled(False)
    for golden in sys.argv[1:] or GOLDENS:
        name, n_tok, n_row, n_ctx = GOLDENS[golden]
        ids = token_ids(golden, n_tok)
        network = hf_model(name)
        network.config.architectures = [type(network).__name__]
        config = json.loads(network.config.to_json_string())  # what save_pretrained writes
        (CONFIGS / f"{name}.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        logits = network(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()  # [n_tok, n_vocab]
        pos = np.arange(n_tok - n_row, n_tok, dtype=np.int32)
        path = HERE / f"{golden}.npz"
        np.savez_compressed(path, model=name, n_ctx=n_ctx, ids=ids, pos=pos, logits=logits[pos].astype(np.float32))
        print(f"{golden}: logits {logits.shape}, spread {logits.std():.2f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
