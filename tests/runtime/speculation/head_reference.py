"""The forward pass of an EAGLE-3 head in float64, row by row, from the paper's description and nothing of llmrun's."""

import numpy as np


class HeadReference:
    """One sequence of a head.

    Args:
        head: its shape (``TinyHead``).
        weights: its tensors; float32, "token_embd.weight" and "output.weight" included.
    """

    def __init__(self, head, weights):
        self._head = head
        self._weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self._keys, self._values = [], []

    def _norm(self, x, name):
        return x / np.sqrt((x * x).mean() + 1e-5) * self._weights[name]

    def _rotate(self, heads, position):
        half = self._head.n_embd_head // 2
        angles = position * 10000.0 ** (-np.arange(half) / half)
        angles /= self._weights.get("rope_freqs.weight", 1.0)
        first, second = heads[:, 0::2], heads[:, 1::2]
        result = np.empty_like(heads)
        result[:, 0::2] = first * np.cos(angles) - second * np.sin(angles)
        result[:, 1::2] = first * np.sin(angles) + second * np.cos(angles)
        return result

    def state(self, rows):
        """Return the state that is made of the target's rows at one position, [n_embd]."""
        if self._head.norm_before_fc:
            rows = self._norm(rows, "enc.output_norm.weight")
        return self._weights["fc.weight"] @ rows

    def step(self, token_id, state):
        """Append a token; return (logits of the tokens that are drafted, the next state)."""
        w, head = self._weights, self._head
        normed = self._norm(state, "blk.0.attn_norm_2.weight")
        both = np.concatenate([self._norm(w["token_embd.weight"][token_id], "blk.0.attn_norm.weight"), normed])
        q, k, v = ((w[f"blk.0.attn_{name}.weight"] @ both).reshape(-1, head.n_embd_head) for name in ("q", "k", "v"))
        position = len(self._keys)
        q, k = self._rotate(q, position), self._rotate(k, position)
        self._keys.append(k.astype(np.float16).astype(np.float64))  # as the cache keeps them
        self._values.append(v.astype(np.float16).astype(np.float64))
        keys, values = np.array(self._keys), np.array(self._values)  # [n, n_head_kv, n_embd_head]
        attended = []
        for i, query in enumerate(q):
            of = i // (head.n_head // head.n_head_kv)
            scores = keys[:, of] @ query / np.sqrt(head.n_embd_head)
            shares = np.exp(scores - scores.max())
            attended.append(shares @ values[:, of] / shares.sum())
        x = w["blk.0.attn_output.weight"] @ np.concatenate(attended)
        x += normed if head.norm_before_residual else state
        h = self._norm(x, "blk.0.ffn_norm.weight")
        gate = w["blk.0.ffn_gate.weight"] @ h
        x = x + w["blk.0.ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * (w["blk.0.ffn_up.weight"] @ h))
        return w["output.weight"] @ self._norm(x, "output_norm.weight"), x
