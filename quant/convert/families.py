"""What distinguishes the model families, as data: their classes in config.json and the tensors of a layer.

Tensor names are GGUF's; those of the checkpoint come from the ``gguf`` package's name maps (``names.py``).
Shapes are written with the letters of ``Shape``.

Source: the models' ``modeling_*.py`` in transformers, and ``conversion/*.py`` of llama.cpp.
"""

from __future__ import annotations

from ...formats.record import Record, field

# Letters of a tensor's shape: embedding, all query heads, all key heads, one head, feed-forward.
Q, K, H, E, F = "q", "k", "h", "e", "f"
QKV, GATE_UP = "q+2k", "2f"

_NORMS = {"attn_norm.weight": (E,), "ffn_norm.weight": (E,)}
_QKV = {"attn_q.weight": (Q, E), "attn_k.weight": (K, E), "attn_v.weight": (K, E), "attn_output.weight": (E, Q)}
_FFN = {"ffn_gate.weight": (F, E), "ffn_up.weight": (F, E), "ffn_down.weight": (E, F)}
_QKV_BIAS = {"attn_q.bias": (Q,), "attn_k.bias": (K,), "attn_v.bias": (K,)}
_OUTPUT_BIAS = {"attn_output.bias": (E,)}
_FFN_BIAS = {"ffn_gate.bias": (F,), "ffn_up.bias": (F,), "ffn_down.bias": (E,)}
_HEAD_NORMS = {"attn_q_norm.weight": (H,), "attn_k_norm.weight": (H,)}
_GEMMA_NORMS = {**_NORMS, "post_attention_norm.weight": (E,), "post_ffw_norm.weight": (E,)}

Tensors = dict[str, tuple[str, ...]]


class Family(Record, kw_only=True):
    """One architecture of GGUF.

    Attributes:
        arch: ``general.architecture``, also the attribute of ``gguf.MODEL_ARCH`` in lower case.
        layer: tensors that every layer has, and their shapes.
        optional: tensors that a layer may have.
        permutes_qk: GGUF's q and k rows are ordered so that rotated pairs are neighbours.
        norm_shift: added to the weights of norms (Gemma's networks multiply by 1 + weight).
        activation: what ``hidden_act`` must be.
        is_tied: the output matrix is the embedding's when config.json does not say.
        defaults: values of config.json that the family's class has when the key is missing.
    """

    arch: str
    layer: Tensors
    optional: Tensors = field(default_factory=dict)
    permutes_qk: bool = False
    norm_shift: float = 0.0
    activation: str = "silu"
    is_tied: bool = False
    defaults: dict[str, int | float] = field(default_factory=dict)


_LLAMA = Family(
    arch="llama",
    layer={**_NORMS, **_QKV, **_FFN},
    optional={**_QKV_BIAS, **_OUTPUT_BIAS, **_FFN_BIAS},
    permutes_qk=True,
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10_000.0},
)
_QWEN2 = Family(
    arch="qwen2",
    layer={**_NORMS, **_QKV, **_QKV_BIAS, **_FFN},
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10_000.0},
)
_QWEN3 = Family(
    arch="qwen3",
    layer={**_NORMS, **_QKV, **_HEAD_NORMS, **_FFN},
    optional={**_QKV_BIAS, **_OUTPUT_BIAS},
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "head_dim": 128},
)
_GEMMA2 = Family(
    arch="gemma2",
    layer={**_GEMMA_NORMS, **_QKV, **_FFN},
    norm_shift=1.0,
    activation="gelu_pytorch_tanh",
    is_tied=True,
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 8192,
    },
)
_GEMMA3 = Family(
    arch="gemma3",
    layer={**_GEMMA_NORMS, **_QKV, **_HEAD_NORMS, **_FFN},
    norm_shift=1.0,
    activation="gelu_pytorch_tanh",
    is_tied=True,
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131_072,
    },
)
_PHI3 = Family(
    arch="phi3",
    layer={
        **_NORMS,
        "attn_qkv.weight": (QKV, E),
        "attn_output.weight": (E, Q),
        "ffn_up.weight": (GATE_UP, E),  # gate above up
        "ffn_down.weight": (E, F),
    },
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 10_000.0},
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": _PHI3,
}
