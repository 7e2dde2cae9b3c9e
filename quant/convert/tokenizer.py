"""Which tokenizer files a checkpoint has, and what becomes of them: ``bpe.py``, ``spm.py`` or ``tiktoken.py``."""

from __future__ import annotations

from ...formats.errors import FormatError
from ...formats.hf_config import HfFolder
from .bpe import convert_byte_level
from .pre_names import is_byte_level
from .special import special_metadata, template_metadata, texts_of
from .spm import convert_sentencepiece, convert_sentencepiece_like, is_sentencepiece_like
from .tiktoken import convert_tekken, convert_tiktoken, is_tiktoken
from .tokens import TokenizerData

FILES = "tokenizer.json, tokenizer.model or tekken.json"


def convert_tokenizer(folder: HfFolder, n_vocab: int, arch: str, pre: str | None) -> TokenizerData:
    """Return the tokenizer of a checkpoint with its special tokens and chat templates.

    Args:
        folder: the checkpoint.
        n_vocab: rows of the embedding.
        arch: GGUF's architecture.
        pre: name of the pre-tokenizer of byte-level tokenizers; None: as recognised.

    Raises:
        FormatError: there is none, it is damaged, of an unknown kind, or does not fit the embedding.
    """
    data = _vocabulary(folder, n_vocab, arch, pre)
    is_spm = data.metadata["tokenizer.ggml.model"].value == "llama"
    tokens = data.metadata["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    texts = texts_of([str(token) for token in tokens], folder)
    special, notes = special_metadata(folder, texts, adds_bos=is_spm, n_vocab=n_vocab, known=data.special)
    data.metadata |= special | template_metadata(folder)
    data.notes += notes
    return data


def _vocabulary(folder: HfFolder, n_vocab: int, arch: str, pre: str | None) -> TokenizerData:
    tokenizer, model = folder.tokenizer, folder.sentencepiece()
    if tokenizer is not None and is_byte_level(tokenizer):
        return convert_byte_level(folder, tokenizer, n_vocab, pre)
    if pre is not None and tokenizer is not None and not is_sentencepiece_like(tokenizer):
        return convert_byte_level(folder, tokenizer, n_vocab, pre)
    if model is not None and not is_tiktoken(model[1]):
        return convert_sentencepiece(folder, *model, n_vocab)
    if tokenizer is not None:
        if is_sentencepiece_like(tokenizer):
            return convert_sentencepiece_like(folder, tokenizer, n_vocab)
        raise FormatError(
            f"{tokenizer.where}: is neither a byte-level nor a SentencePiece tokenizer of byte pairs. "
            "If it is byte-level, give the name of its pre-tokenizer with --tokenizer-pre"
        )
    tekken = folder.json("tekken.json")
    if tekken is not None:
        return convert_tekken(tekken, n_vocab, pre)
    if model is not None:
        return convert_tiktoken(folder, *model, n_vocab, arch, pre)
    found = sorted(folder.path.glob("*.tiktoken"))
    if len(found) == 1:
        return convert_tiktoken(folder, found[0], folder.raw(found[0].name), n_vocab, arch, pre)
    raise FormatError(f"{folder.path}: has no tokenizer, expected {FILES}")
