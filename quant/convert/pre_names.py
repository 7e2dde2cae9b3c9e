r"""GGUF's name for the pre-tokenizer of a tokenizer.json, recognised by its structure.

GGUF names pre-tokenizers (``tokenizer.ggml.pre``) instead of describing them. A name stands for the cuts that a
text gets before merges, and for whether whole words skip the merges. What is not in the table is refused: a wrong
name gives fluent nonsense.

Source: the ``pre_tokenizer`` of the published tokenizer.json files; for the names llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from ...formats.errors import FormatError, quote
from ...formats.hf_config import JsonObject

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(ending: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_TAIL}"
QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MINICPM5 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_TAIL}"
SEED_CODER = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_cased('')}|\p{{N}}|{_TAIL_SLASH}"
GPT4O = rf"{_cased(_CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
DIGIT = r"\p{N}"

# (cuts in order, whether whole words skip the merges) -> name
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGIT, GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((QWEN2,), False): "qwen2",
    ((QWEN35,), False): "qwen35",
    ((MINICPM5,), True): "minicpm5",
    ((SEED_CODER,), False): "seed-coder",
    ((TEKKEN,), True): "tekken",
    ((GPT4O,), False): "gpt-4o",
    (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT), False): "deepseek-coder",
    (
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ),
        False,
    ): "deepseek-v3",
}
_TEKKEN_NAMES = {TEKKEN: "tekken", GPT4O: "gpt-4o", LLAMA3: "llama-bpe"}


def _spelled(pattern: str) -> str:
    """Return a pattern with its line ends written as escapes, as most files have them."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


_NAMES_AS_SPELLED = {(tuple(map(_spelled, steps)), flag): name for (steps, flag), name in _NAMES.items()}


def pre_name(tokenizer: JsonObject, *, ignores_merges: bool) -> str:
    """Return ``tokenizer.ggml.pre`` for a byte-level tokenizer.json.

    Raises:
        FormatError: its pre-tokenizer is none that GGUF has a name for.
    """
    steps: list[str] = []
    entry = tokenizer.object("pre_tokenizer")
    if entry is not None:
        _flatten(entry, steps, 0)
    name = _NAMES_AS_SPELLED.get((tuple(map(_spelled, steps)), ignores_merges))
    if name is None:
        shown = " then ".join(quote(step) for step in steps) or "no cuts"
        extra = " with ignore_merges" if ignores_merges else ""
        raise FormatError(
            f"{tokenizer.where}: GGUF has no name for this pre-tokenizer ({shown}{extra}). If you know that it splits "
            "as one of llama.cpp's, give that name with --tokenizer-pre"
        )
    return name


def pre_name_of_pattern(pattern: str, where: str) -> str:
    """Return ``tokenizer.ggml.pre`` for the one pattern of a tekken.json.

    Raises:
        FormatError: GGUF has no name for it.
    """
    name = _TEKKEN_NAMES.get(_spelled(pattern))
    if name is None:
        raise FormatError(f"{where}: GGUF has no name for the pattern {quote(pattern)}. Give one with --tokenizer-pre")
    return name


def is_byte_level(tokenizer: JsonObject) -> bool:
    """Return whether the tokens spell bytes in GPT-2's alphabet."""
    entry = tokenizer.object("pre_tokenizer")
    return entry is not None and _has_type(entry, "ByteLevel", 0)


def _has_type(entry: JsonObject, kind: str, depth: int) -> bool:
    if entry.optional("type", str) == kind:
        return True
    return depth < 4 and any(_has_type(one, kind, depth + 1) for one in _members(entry))


def _members(entry: JsonObject) -> list[JsonObject]:
    return [JsonObject(entry.where, one) for one in entry.array("pretokenizers", dict) or []]


def _flatten(entry: JsonObject, steps: list[str], depth: int) -> None:
    """Append the cuts that an entry makes, as patterns whose matches stand alone."""
    kind = entry.required("type", str)
    if kind == "Sequence" and depth < 4:
        for one in _members(entry):
            _flatten(one, steps, depth + 1)
        return
    if kind == "ByteLevel":
        if entry.optional("add_prefix_space", bool):
            raise FormatError(f"{entry.where}: a space in front of every text (add_prefix_space) is not in GGUF")
        if entry.optional("use_regex", bool) is not False:
            steps.append(GPT2)
        return
    if kind == "Digits":
        steps.append(DIGIT if entry.optional("individual_digits", bool) else r"\p{N}+")
        return
    pattern = entry.object("pattern")
    behavior, is_inverted = entry.optional("behavior", str), entry.optional("invert", bool) or False
    # What a pattern matches everywhere, and keeping the matches while removing the rest, are the same cuts.
    is_plain = (behavior, is_inverted) in (("Isolated", False), ("Removed", True))
    if kind != "Split" or pattern is None or not is_plain or "Regex" not in pattern:
        steps.append(f"{kind} {behavior or ''}".strip())
        return
    steps.append(pattern.required("Regex", str))
