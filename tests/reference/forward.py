"""Forward pass of a GGUF model in NumPy float64: slow, short, and independent of llmrun's own code.

It reads the file with the ``gguf`` package, dequantises every tensor with ``gguf.quants`` and keeps
no cache: the whole sequence is one matrix. `test_forward.py` holds it against the logits of
``transformers``; other tests hold llmrun against it, also for quantised files.

from ..reference.forward import Reference      # relative: from tests/<area>/test_*.py

logits = Reference(path).logits([1, 2, 3])     # float64 [n_tok, n_vocab]

Source of the conventions: llama.cpp (``src/llama-model.cpp``, ``src/models/*.cpp``, ``ggml_rope_yarn``).
"""

import math

import gguf
import numpy as np

NEIGHBOUR_PAIRS = ("llama",)  # rope turns (2i, 2i + 1); all other architectures turn (i, i + n_rot / 2)
GEMMA = ("gemma2", "gemma3")
N_LAYER_27B = {"gemma2": 46, "gemma3": 62}  # these scale the scores by sqrt(n_embd / n_head)
SWA_PATTERN = {"gemma2": 2, "gemma3": 6}  # the last layer of each such group attends to everything


class Reference:
    """A model's weights as float64 and its forward pass.

    Args:
        path: GGUF file.
        n_ctx: context size; only long-rope models depend on it (it chooses long or short factors).
    """

    def __init__(self, path, n_ctx=256):
        reader = gguf.GGUFReader(path)
        wanted = {k: f for k, f in reader.fields.items() if not k.startswith("tokenizer.")}
        self.metadata = {key: value.contents() for key, value in wanted.items()}
        self.arch = self.metadata["general.architecture"]
        self.weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.weights = {name: w.astype(np.float64) for name, w in self.weights.items()}
        self.n_ctx = n_ctx
        self.n_layer = self.get("block_count")
        self.n_embd = self.get("embedding_length")
        self.n_head = self.get("attention.head_count")
        self.n_head_kv = self.get("attention.head_count_kv", self.n_head)
        self.n_embd_head = self.get("attention.key_length", self.n_embd // self.n_head)
        self.n_rot = self.get("rope.dimension_count", self.n_embd_head)

    def get(self, key, default=None):
        value = self.metadata.get(f"{self.arch}.{key}", default)
        assert value is not None or default is None, key
        return value

    def window(self, layer):
        """Return how many positions the layer sees (itself included), or None for all."""
        pattern = SWA_PATTERN.get(self.arch)
        if pattern is None or layer % pattern == pattern - 1:
            return None
        return self.get("attention.sliding_window")

    def rope_table(self, n_tok, is_local):
        """Return (cos, sin), float64 [n_tok, n_rot / 2], attention factor included."""
        theta, scaling = self.get("rope.freq_base", 10000.0), self.get("rope.scaling.type", "none")
        if is_local and self.arch == "gemma3":
            theta, scaling = self.get("rope.freq_base_swa", 10000.0), "none"
        freq = theta ** (-np.arange(0, self.n_rot, 2) / self.n_rot)  # [n_rot / 2]
        attention_factor = self.get("rope.scaling.attn_factor", 1.0)
        n_ctx_orig = self.get("rope.scaling.original_context_length", self.get("context_length"))
        if "rope_freqs.weight" in self.weights:
            freq = freq / self.weights["rope_freqs.weight"]
        elif "rope_factors_long.weight" in self.weights:
            kind = "long" if self.n_ctx > n_ctx_orig else "short"
            freq = freq / self.weights[f"rope_factors_{kind}.weight"]
        if scaling == "linear":
            freq = freq / self.get("rope.scaling.factor")
        elif scaling == "yarn":
            factor = self.get("rope.scaling.factor")
            kept = self.yarn_kept(theta, n_ctx_orig)
            freq = freq * kept + freq / factor * (1 - kept)
            attention_factor *= 1 + 0.1 * math.log(factor)
        angle = np.arange(n_tok)[:, None] * freq  # [n_tok, n_rot / 2]
        return np.cos(angle) * attention_factor, np.sin(angle) * attention_factor

    def yarn_kept(self, theta, n_ctx_orig):
        """Return how much of each unscaled frequency stays, [n_rot / 2]: 1 for the fastest, 0 for the slowest."""

        def index_with_turns(turns):
            return self.n_rot * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(theta))

        start = max(0, math.floor(index_with_turns(self.get("rope.scaling.yarn_beta_fast", 32.0))))
        stop = min(self.n_rot - 1, math.ceil(index_with_turns(self.get("rope.scaling.yarn_beta_slow", 1.0))))
        ramp = (np.arange(self.n_rot // 2) - start) / max(0.001, stop - start)
        return 1 - np.clip(ramp, 0, 1)

    def turn(self, x, table):
        """Apply rope to x [n_tok, n_head, n_embd_head]."""
        cos, sin = (t[:, None, :] for t in table)
        y = x.copy()
        if self.arch in NEIGHBOUR_PAIRS:
            first, second = np.s_[..., 0 : self.n_rot : 2], np.s_[..., 1 : self.n_rot : 2]
        else:
            first, second = np.s_[..., : self.n_rot // 2], np.s_[..., self.n_rot // 2 : self.n_rot]
        y[first] = x[first] * cos - x[second] * sin
        y[second] = x[first] * sin + x[second] * cos
        return y

    def norm(self, x, name):
        """Root-mean-square norm over the last axis; GGUF's Gemma weights include their 1."""
        eps = self.get("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * self.weights[name]

    def linear(self, x, name):
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def attention(self, x, layer):
        n_tok, blk = len(x), f"blk.{layer}."
        n_q, n_kv = self.n_head * self.n_embd_head, self.n_head_kv * self.n_embd_head
        if blk + "attn_qkv.weight" in self.weights:
            q, k, v = np.split(self.linear(x, blk + "attn_qkv"), [n_q, n_q + n_kv], axis=1)
        else:
            q, k, v = (self.linear(x, blk + name) for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = (a.reshape(n_tok, -1, self.n_embd_head) for a in (q, k, v))
        if blk + "attn_q_norm.weight" in self.weights:
            q, k = self.norm(q, blk + "attn_q_norm.weight"), self.norm(k, blk + "attn_k_norm.weight")
        window = self.window(layer)
        table = self.rope_table(n_tok, window is not None)
        q, k = self.turn(q, table), self.turn(k, table)
        k, v = (np.repeat(a, self.n_head // self.n_head_kv, axis=1) for a in (k, v))
        is_27b = self.n_layer == N_LAYER_27B.get(self.arch)
        width = self.n_embd // self.n_head if is_27b else self.n_embd_head
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(width)  # [n_head, n_tok, n_tok]
        scores = soft_cap(scores, self.get("attn_logit_softcapping", 0.0))
        distance = np.arange(n_tok)[:, None] - np.arange(n_tok)[None, :]
        is_seen = (distance >= 0) & (distance < (window or n_tok))
        p = np.exp(np.where(is_seen, scores - scores.max(axis=-1, keepdims=True), -np.inf))
        p /= p.sum(axis=-1, keepdims=True)
        return self.linear(np.einsum("hts,shd->thd", p, v).reshape(n_tok, n_q), blk + "attn_output")

    def feed_forward(self, x, layer):
        blk = f"blk.{layer}."
        up = self.linear(x, blk + "ffn_up")
        gate, up = np.split(up, 2, axis=1) if self.arch == "phi3" else (self.linear(x, blk + "ffn_gate"), up)
        if self.arch in GEMMA:
            gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * up, blk + "ffn_down")

    def logits(self, ids):
        """Return the logits after each token of one fresh sequence, float64 [n_tok, n_vocab]."""
        is_gemma = self.arch in GEMMA
        x = self.weights["token_embd.weight"][np.asarray(ids)] * (math.sqrt(self.n_embd) if is_gemma else 1.0)
        for layer in range(self.n_layer):
            blk = f"blk.{layer}."
            y = self.attention(self.norm(x, blk + "attn_norm.weight"), layer)
            x = x + (self.norm(y, blk + "post_attention_norm.weight") if is_gemma else y)
            y = self.feed_forward(self.norm(x, blk + "ffn_norm.weight"), layer)
            x = x + (self.norm(y, blk + "post_ffw_norm.weight") if is_gemma else y)
        x = self.norm(x, "output_norm.weight")
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return soft_cap(x @ head.T, self.get("final_logit_softcapping", 0.0))


def soft_cap(x, cap):
    """Return ``cap * tanh(x / cap)``; a cap of 0 means none."""
    return cap * np.tanh(x / cap) if cap else x
