"""The corrections that llama.cpp makes to a vocabulary at load time, and the tokens that end a generation.

Converters have marked tokens such as ``<|im_end|>`` as ordinary text often enough that llama.cpp knows
them by their text. Token ids only agree with it when the same corrections apply here.

Source: llama.cpp src/llama-vocab.cpp (`llama_vocab::impl::load`, "special tokens").
"""

from __future__ import annotations

import numpy as np

from ...formats.metadata import Metadata
from .vocabulary import Attr, Vocabulary

_EOT = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "<end_of_utterance>",
)
# name -> texts that stand for it when no metadata key names an id; the first that exists is taken
_BY_TEXT: dict[str, tuple[str, ...]] = {
    "eot": _EOT,
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",  # noqa: RUF001
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",  # noqa: RUF001
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",  # noqa: RUF001
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_EOG = (
    *_EOT,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def correct_token_types(vocabulary: Vocabulary, metadata: Metadata) -> None:
    """Change ``attrs`` and ``special`` of the vocabulary in place and fill ``eog_ids``."""
    ids, attrs, special = vocabulary.ids, vocabulary.attrs, vocabulary.special
    for name, texts in _BY_TEXT.items():
        found = [ids[text] for text in texts if text in ids]
        if name not in special and found:
            special[name] = found[0]
            attrs[found[0]] |= Attr.CONTROL
    _mark_unused(vocabulary)
    eog = {special[name] for name in ("fim_pad", "fim_rep", "fim_sep") if name in special}
    for text in _EOG:
        if text in ids:
            eog.add(ids[text])
            attrs[ids[text]] |= Attr.CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            attrs[ids[text]] = Attr.USER_DEFINED
    eog |= {special[name] for name in ("eos", "eot", "eom") if name in special}
    _drop_false_ends(vocabulary, eog)
    vocabulary.eog_ids = frozenset(eog)
    _set_strip(vocabulary, metadata)


def _mark_unused(vocabulary: Vocabulary) -> None:
    for token_id in (vocabulary.attrs & Attr.CONTROL).nonzero()[0].tolist():
        if "unused" in vocabulary.texts[token_id].partition("\0")[0]:
            vocabulary.attrs[token_id] |= Attr.UNUSED


def _drop_false_ends(vocabulary: Vocabulary, eog: set[int]) -> None:
    """Remove ``<|end|>`` and ``</s>`` from ``eog`` where the other tokens show that they mean something else."""
    texts = {vocabulary.texts[token_id]: token_id for token_id in eog}
    calls = "<|call|>" in texts or "<|calls|>" in texts
    if "<|end|>" in texts and calls and ("<|return|>" in texts or "<|flush|>" in texts):
        eog.discard(texts["<|end|>"])
        vocabulary.attrs[texts["<|end|>"]] = Attr.USER_DEFINED
    if "</s>" in texts and ("<|tool_response>" in texts or "<|plamo:eos|>" in texts):
        eog.discard(texts["</s>"])
        vocabulary.attrs[texts["</s>"]] = Attr.NORMAL


def _set_strip(vocabulary: Vocabulary, metadata: Metadata) -> None:
    """Set which tokens take the white space beside them, by the name of the model (GGUF does not say)."""
    pre = metadata.optional("tokenizer.ggml.pre", str, "")
    arch = metadata.optional("general.architecture", str, "")
    name = metadata.optional("general.name", str, "").lower()
    ids, attrs = vocabulary.ids, vocabulary.attrs
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in arch for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        if "<mask>" in ids:
            attrs[ids["<mask>"]] |= Attr.LSTRIP
    elif "phi-3" in name or "phi3" in name:
        special = (attrs & (Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN)) != 0  # [n_vocab]
        attrs[special] |= np.uint8(Attr.RSTRIP)
        if "</s>" in ids:
            attrs[ids["</s>"]] |= Attr.RSTRIP
        for text in ("<unk>", "<s>", "<|endoftext|>"):
            if text in ids:
                attrs[ids[text]] &= ~Attr.RSTRIP & 0xFF
    elif "modern-bert" in name and "[MASK]" in ids:
        attrs[ids["[MASK]"]] |= Attr.LSTRIP
