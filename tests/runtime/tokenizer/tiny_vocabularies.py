"""Vocabularies of a few hundred tokens, trained on a paragraph, as metadata for ``write_gguf``."""

# ruff: noqa: RUF001 - text in many scripts

from collections import Counter
from itertools import pairwise

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.tokenizer.bpe import BYTE_TO_CHAR
from llmrun.runtime.tokenizer.load import load_tokenizer

from ...tiny_gguf import write_gguf

TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog did not mind. It's been 12 years since 1998!\n\n"
    "def merge(left, right):\n    return left + right  # the sum of the two\n    for i in range(10):\n        pass\n"
    "Where there is a will there is a way; there isn't another. Don't the others think so? They'll see.\n"
    "Äpfel und Öl für die Übung, à la carte, naïve café. Привет, мир! 你好，世界。 こんにちは。 नमस्ते दुनिया 🙂🙂👍\n"
    "unbelievable unhappiness unhappily happiness happily happy believe believable able 1234 5678 2024\n"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def train_merges(words, n_merges):
    """Return the merges of byte-pair training on a list of words, the most frequent pair first."""
    counts = Counter(words)
    spelled = {word: list(word) for word in counts}
    merges = []
    for _ in range(n_merges):
        pairs = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for parts in spelled.values():
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def _words(text, space):
    return [space + word if i else word for i, word in enumerate(text.split(" "))]


def byte_level(pre="gpt-2", **extra):
    """Return a byte-level BPE vocabulary: bytes, merges, control and user-defined tokens."""
    mapped = ["".join(BYTE_TO_CHAR[byte] for byte in word.encode()) for word in _words(TEXT, " ")]
    merges = train_merges(mapped, 300)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(BYTE_TO_CHAR.values()), *map("".join, merges), "<tool>", "</tool>", "[PAD1]"]
    types = [CONTROL] * 3 + [NORMAL] * (len(tokens) - 6) + [USER_DEFINED] * 2 + [UNUSED]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        **extra,
    }


def spm(**extra):
    """Return a SentencePiece BPE vocabulary with byte tokens and user-defined runs of newlines and spaces."""
    words = [word.replace(" ", "▁") for word in _words(TEXT.replace("\n", " "), " ")]
    merges = train_merges(words, 300)
    special = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    user = ["\n", "\n\n", "\n\n\n", "<tool>"]
    pieces = [*map("".join, merges), *sorted({char for word in words for char in word} | set("<>/_0x"))]
    pieces = list(dict.fromkeys([*pieces, "▁▁", "▁▁▁▁", "<0x", "<0x4"]))
    tokens = [*special, *byte_tokens, *user, *pieces]
    types = [UNKNOWN] + [CONTROL] * 4 + [BYTE] * 256 + [USER_DEFINED] * 4 + [NORMAL] * len(pieces)
    scores = [0.0] * (len(tokens) - len(pieces)) + [-float(rank) for rank in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


def text_level(**extra):
    """Return a BPE vocabulary of plain text with ``▁`` and byte tokens, as Gemma 4 has."""
    lines = TEXT.replace(" ", "▁").split("\n")
    merges = train_merges([word for line in lines for word in line.replace("▁", " ▁").split(" ")], 300)
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*sorted(set(TEXT.replace(" ", "▁"))), *map("".join, merges), "\n\n"]
    tokens = [*special, *byte_tokens, *dict.fromkeys(pieces)]
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 260),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        **extra,
    }


def unigram(**extra):
    """Return a unigram vocabulary: pieces of the trained merges, scored by their length and rank."""
    words = ["▁" + word for word in TEXT.split()]
    merges = train_merges(words, 300)
    chars = sorted({char for word in words for char in word} - {"你", "🙂"})
    pieces = list(dict.fromkeys([*map("".join, merges), *chars]))
    tokens = ["<pad>", "</s>", "<unk>", *pieces, "<tool>"]
    scores = [0.0] * 3 + [-2.0 - rank / 16 - (len(piece) == 1) for rank, piece in enumerate(pieces)] + [0.0]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 2 + [UNKNOWN] + [NORMAL] * len(pieces) + [USER_DEFINED],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        **extra,
    }


def wordpiece(**extra):
    """Return a WordPiece vocabulary: whole words, word starts and word ends."""
    words = sorted({word.strip(".,!?;:").lower() for word in TEXT.split()} - {""})
    starts = ["un", "happ", "be", "re", *"abcdefghijklmnopqrstuvwxyz0123456789.,!?;:'()+#-，。世界你好"]
    ends = ["able", "ness", "ily", "y", "ing", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = list(dict.fromkeys(["▁" + text for text in (*words, *starts)] + ends))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 5 + [NORMAL] * len(pieces),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
        **extra,
    }


VOCABULARIES = {
    "byte_level": byte_level,
    "llama_3": lambda: byte_level("llama-bpe"),
    "smollm": lambda: byte_level("smollm"),
    "spm": spm,
    "text_level": text_level,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def open_tokenizer(folder, metadata, *, pre=None):
    """Write the metadata as a GGUF file and return the tokenizer that it gives."""
    path = write_gguf(folder / "vocabulary.gguf", metadata, {})
    with GgufFile.open(path) as file:
        return load_tokenizer(file.metadata, pre=pre)
