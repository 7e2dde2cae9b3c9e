"""The hyper-parameters of config.json as GGUF's metadata; what GGUF cannot say is refused or noted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.errors import FormatError, quote
from ...formats.hf_config import JsonObject
from ...formats.meta_value import MetaValue
from ...formats.record import Record, field
from .families import FAMILIES, Family
from .rope import Rope, read_rope

# Far above any real model: a damaged file must not make millions of names.
_MAX_LAYER, _MAX_HEAD, _MAX_WIDTH = 1024, 1024, 1 << 22
_GEMMA3_PATTERN = 6  # GGUF's gemma3: one layer in six sees everything
_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


class Network(Record, kw_only=True, frozen=False):
    """A checked network.

    Attributes:
        family: its family.
        n_vocab: rows of the embedding, None when config.json does not say.
        is_tied: the output matrix is the embedding's; None: it is unless the checkpoint has one.
        sizes: letters of ``families.py`` -> size.
        metadata: GGUF's keys, without tokenizer and ``general.*``.
        tensors: tensors that are made from config.json (divisors of the rotation).
        notes: what is lost.
    """

    family: Family
    n_vocab: int | None
    n_layer: int
    n_head: int
    n_head_kv: int
    is_tied: bool | None
    sizes: dict[str, int]
    metadata: dict[str, MetaValue] = field(default_factory=dict)
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def text_config(config: JsonObject) -> JsonObject:
    """Return the configuration of the language model: of models that also see, a part of the whole."""
    inner = config.object("text_config")
    return config if inner is None else JsonObject(inner.where, {**config.values, **inner.values})


def find_family(config: JsonObject) -> Family:
    """Return the family of the class that config.json names.

    Raises:
        FormatError: it names none, or one that is not supported.
    """
    names = config.array("architectures", str) or []
    if not names:
        raise FormatError(f"{config.where}: 'architectures' is missing")
    family = FAMILIES.get(names[0])
    if family is None:
        known = ", ".join(FAMILIES)
        raise FormatError(f"{config.where}: architecture {quote(names[0])} is not supported, expected one of {known}")
    return family


def read_network(whole: JsonObject) -> Network:
    """Return the network of a config.json.

    Raises:
        FormatError: a key is missing or out of range, or the network computes something that GGUF's does not.
    """
    family, config = find_family(whole), text_config(whole)
    defaults = family.defaults
    n_embd = _count(config, "hidden_size", defaults, _MAX_WIDTH)
    n_head = _count(config, "num_attention_heads", defaults, _MAX_HEAD)
    n_head_kv = _count(config, "num_key_value_heads", {"num_key_value_heads": n_head, **defaults}, _MAX_HEAD)
    n_embd_head = _count(config, "head_dim", {"head_dim": n_embd // n_head, **defaults}, _MAX_WIDTH)
    if n_head % n_head_kv or n_embd_head % 2 or ("head_dim" not in config and n_embd % n_head):
        raise FormatError(
            f"{config.where}: n_head={n_head}, n_head_kv={n_head_kv}, head_dim={n_embd_head}, n_embd={n_embd} clash"
        )
    tied = config.optional("tie_word_embeddings", bool)
    network = Network(
        family=family,
        n_vocab=_count(config, "vocab_size", {}, _MAX_WIDTH) if "vocab_size" in config else None,
        n_layer=_count(config, "num_hidden_layers", {}, _MAX_LAYER),
        n_head=n_head,
        n_head_kv=n_head_kv,
        is_tied=True if tied is None and family.is_tied else tied,
        sizes={"e": n_embd, "q": n_head * n_embd_head, "k": n_head_kv * n_embd_head, "h": n_embd_head},
    )
    n_ff = _count(config, "intermediate_size", {}, _MAX_WIDTH)
    network.sizes |= {"f": n_ff, "2f": 2 * n_ff, "q+2k": network.sizes["q"] + 2 * network.sizes["k"]}
    _check_computation(network, config)
    _fill(network, config)
    return network


def _count(config: JsonObject, key: str, defaults: dict[str, Any], maximum: int) -> int:
    value = config.optional(key, int) if key in defaults else config.required(key, int)
    value = int(defaults[key]) if value is None else value
    if not 1 <= value <= maximum:
        raise FormatError(f"{config.where}: {quote(key)} is {value}, expected 1 to {maximum}")
    return value


def _fill(network: Network, config: JsonObject) -> None:
    """Write the metadata."""
    family, sizes, arch = network.family, network.sizes, network.family.arch
    n_ctx = _count(config, "max_position_embeddings", family.defaults, 1 << 31)
    eps = config.optional("rms_norm_eps", float)
    eps = float(family.defaults["rms_norm_eps"]) if eps is None else eps
    if not 0 <= eps < 1:
        raise FormatError(f"{config.where}: rms_norm_eps is {eps:g}, expected 0 to 1")
    rope = read_rope(config, family.defaults, arch, sizes["h"], n_ctx)
    counts = {
        "block_count": network.n_layer,
        "context_length": n_ctx,
        "embedding_length": sizes["e"],
        "feed_forward_length": sizes["f"],
        "attention.head_count": network.n_head,
        "attention.head_count_kv": network.n_head_kv,
    }
    for key, count in counts.items():
        network.metadata[f"{arch}.{key}"] = MetaValue.u32(count)
    network.metadata[f"{arch}.attention.layer_norm_rms_epsilon"] = MetaValue.f32(eps)
    if "head_dim" in config or "head_dim" in family.defaults:
        network.metadata[f"{arch}.attention.key_length"] = MetaValue.u32(sizes["h"])
        network.metadata[f"{arch}.attention.value_length"] = MetaValue.u32(sizes["h"])
    if arch == "llama" and network.n_vocab is not None:
        network.metadata["llama.vocab_size"] = MetaValue.u32(network.n_vocab)
    _fill_rope(network, rope)
    _fill_window(network, config)


def _fill_rope(network: Network, rope: Rope) -> None:
    arch, metadata = network.family.arch, network.metadata
    metadata[f"{arch}.rope.freq_base"] = MetaValue.f32(rope.theta)
    if rope.local_theta is not None:
        metadata[f"{arch}.rope.freq_base_swa"] = MetaValue.f32(rope.local_theta)
    if arch in ("llama", "phi3"):
        metadata[f"{arch}.rope.dimension_count"] = MetaValue.u32(rope.n_rot)
    for key, value in rope.keys.items():
        metadata[f"{arch}.rope.{key}"] = (
            MetaValue.text(value)
            if isinstance(value, str)
            else MetaValue.u32(value)
            if isinstance(value, int)
            else MetaValue.f32(value)
        )
    network.tensors |= rope.tensors
    network.notes += rope.notes


def _fill_window(network: Network, config: JsonObject) -> None:
    """Write sliding window and soft caps, where GGUF's architecture has them."""
    arch, metadata, defaults = network.family.arch, network.metadata, network.family.defaults
    window = config.optional("sliding_window", int)
    if arch == "phi3":
        window = window or 0  # 0 tells Phi-4, which has none, from Phi-3
    elif arch.startswith("gemma"):
        window = int(defaults["sliding_window"]) if "sliding_window" not in config.values else window or 0
    elif window is not None and (arch == "llama" or config.optional("use_sliding_window", bool)):
        network.notes.append(f"the sliding window of {window} tokens is left out: {arch} in GGUF sees the whole text")
        return
    else:
        return
    if not 0 <= window < 1 << 31:
        raise FormatError(f"{config.where}: sliding_window is {window}, expected 0 to 2147483647")
    if window or arch == "phi3":
        metadata[f"{arch}.attention.sliding_window"] = MetaValue.u32(window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not arch.startswith("gemma"):
            break
        cap = config.optional(key, float) if key in config.values else defaults.get(key)
        if cap is None and arch == "gemma2":
            raise FormatError(f"{config.where}: {key} is null, but gemma2 in GGUF always caps")
        if cap is not None and not 0 < cap < 1e6:
            raise FormatError(f"{config.where}: {key} is {cap:g}, expected 0 to 1000000")
        if cap is not None:
            metadata[f"{arch}.{key}"] = MetaValue.f32(float(cap))


def _check_computation(network: Network, config: JsonObject) -> None:
    """Refuse what would be computed differently from a GGUF file.

    Raises:
        FormatError: another activation, attention scale, or order of layers.
    """
    family, sizes = network.family, network.sizes
    activation = config.either(("hidden_activation", "hidden_act"), str) or family.activation
    same = {"swish": "silu", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh"}
    if same.get(activation, activation) != family.activation:
        raise FormatError(f"{config.where}: activation {quote(activation)}, expected {family.activation}")
    for switch in ("use_bidirectional_attention", "num_local_experts", "num_experts"):
        if config.values.get(switch):
            raise FormatError(f"{config.where}: {quote(switch)} is set, which {family.arch} in GGUF does not have")
    if not family.arch.startswith("gemma"):
        return
    scalar = config.optional("query_pre_attn_scalar", float) or float(family.defaults["query_pre_attn_scalar"])
    is_27b = network.n_layer == _27B_LAYERS[family.arch]
    expected = sizes["e"] // network.n_head if is_27b else sizes["h"]
    if scalar != expected:
        raise FormatError(
            f"{config.where}: query_pre_attn_scalar is {scalar:g}, but GGUF's {family.arch} of {network.n_layer} layers"
            f" means {expected}"
        )
    cap = config.optional("attn_logit_softcapping", float)
    if family.arch == "gemma3" and cap is not None:
        raise FormatError(f"{config.where}: attn_logit_softcapping is set, which gemma3 in GGUF does not have")
    _check_layer_types(network, config)


def _check_layer_types(network: Network, config: JsonObject) -> None:
    pattern = config.either(("sliding_window_pattern", "_sliding_window_pattern"), int)
    every = _GEMMA3_PATTERN if network.family.arch == "gemma3" else 2
    if pattern is not None and pattern != every and "layer_types" not in config:
        raise FormatError(f"{config.where}: sliding_window_pattern is {pattern}, expected {every}")
    kinds = config.array("layer_types", str)
    if kinds is None:
        return
    wanted = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(network.n_layer)]
    if kinds != wanted:
        raise FormatError(
            f"{config.where}: layer_types differ from those of {network.family.arch} in GGUF: every {every}. layer "
            "sees the whole text, the others a window"
        )
