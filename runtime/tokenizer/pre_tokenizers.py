r"""How each ``tokenizer.ggml.pre`` name splits text, and the settings that come with it.

A name that is not here is refused: a wrong guess gives fluent nonsense that nobody can explain.

Source: the ``pre_tokenizer`` of each model's tokenizer.json, in the form that llama.cpp's
src/llama-vocab.cpp gives them (``\p{Lu}`` and its kin mean any letter there, and so they do here).
"""

from __future__ import annotations

from ...formats.errors import FormatError, quote
from ...formats.record import Record, replace
from .split import DigitGroups, DigitMarks, Regex, Step, TrailingSpace


class PreTokenizer(Record, kw_only=True):
    """How text is split, and settings of the tokenizer that llama.cpp ties to the name.

    Attributes:
        steps: cuts of the text, in order.
        ignore_merges: a whole word that is a token is taken without looking at merges.
        add_bos: whether a prompt begins with bos when the file does not say.
        always_add_bos: whether it does even when the file says no.
        has_default_bos: whether llama.cpp's default id stands for a missing ``bos_token_id``.
        byte_level: whether tokens spell bytes in GPT-2's alphabet; otherwise they are text.
        escape_spaces: whether a space is written as ``▁`` in tokens.
        whole_newlines: whether a run of newlines is looked up as a token of its own first.
    """

    steps: tuple[Step, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    always_add_bos: bool = False
    has_default_bos: bool = True
    byte_level: bool = True
    escape_spaces: bool = False
    whole_newlines: bool = False


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_START = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
_KANA_KANJI = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _cased(upper: str, lower: str, ending: str) -> str:
    """Return words of (upper case)*(lower case)+ or (upper case)+(lower case)*; both sets hold caseless letters."""
    return rf"{_START}{upper}*{lower}+{ending}|{_START}{upper}+{lower}*{ending}"


_GPT2 = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_LLAMA3 = Regex(rf"{_CONTRACTION}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}")
_QWEN2 = Regex(rf"{_CONTRACTION}|{_START}\p{{L}}+|\p{{N}}|{_TAIL}")
_DIGIT = Regex(r"\p{N}")
_3_DIGITS = Regex(r"\p{N}{1,3}")
_LINES = Regex(r"[^\n]+|[\n]+")
_PUNCTUATED_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = Regex(rf"{_PUNCTUATED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}")
_BLOOM = Regex(r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+")
_CASED = _cased(r"\p{Upper}", r"\p{Lower}", "")
_CASED_CONTRACTED = _cased(r"\p{Upper}", r"\p{Lower}", _CONTRACTION + "?")
_CASED_MARKS = _cased(r"[\p{L}\p{M}]", r"[\p{L}\p{M}]", _CONTRACTION + "?")
_LATIN_GREEK_CYRILLIC = (
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

_LLAMA3_SETTINGS = PreTokenizer(steps=(_LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2_SETTINGS = PreTokenizer(steps=(_GPT2,))
_DIGIT_GPT2 = PreTokenizer(steps=(_DIGIT, _GPT2))
_QWEN2_SETTINGS = PreTokenizer(steps=(_QWEN2,))
_DEEPSEEK3_SETTINGS = PreTokenizer(steps=(_3_DIGITS, Regex(_KANA_KANJI), _DEEPSEEK3))
_GPT4O = PreTokenizer(steps=(Regex(rf"{_CASED_CONTRACTED}|\p{{N}}{{1,3}}|{_TAIL_SLASH}"),))
_TINY_AYA = PreTokenizer(steps=(DigitGroups(), Regex(rf"{_CASED_MARKS}|\p{{N}}{{1,3}}|{_TAIL_SLASH}")))
_BAILING = PreTokenizer(
    steps=(
        Regex(
            rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_START}\p{{L}}+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    )
)
_GEMMA4 = PreTokenizer(steps=(_LINES,), always_add_bos=True, byte_level=False, escape_spaces=True, whole_newlines=True)
_CHATGLM = PreTokenizer(steps=(_LLAMA3,), has_default_bos=False)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(steps=(Regex(r"[\p{P}\$\+<=>\^~\|]+"), _GPT2, Regex(r"\p{N}+"), Regex("[0-9][0-9][0-9]"))),
    "minicpm5": PreTokenizer(
        steps=(_3_DIGITS, Regex(rf"{_CONTRACTION}|{_START}\p{{L}}+|\p{{N}}+|{_TAIL}")), ignore_merges=True
    ),
    **dict.fromkeys(
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        _LLAMA3_SETTINGS,
    ),
    "jais-2": PreTokenizer(
        steps=(
            Regex(
                rf"{_CONTRACTION}|{_START}\p{{L}}+|\p{{N}}{{1,3}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_CASCADE}"
            ),
        )
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer(steps=(_LLAMA3,))),
    "deepseek-llm": PreTokenizer(
        steps=(
            Regex("[\r\n]"),
            Regex(rf"\s?[A-Za-z{_LATIN_GREEK_CYRILLIC}]+"),
            Regex(r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            TrailingSpace(),
            Regex(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            Regex(r"\p{N}+"),
        )
    ),
    "deepseek-coder": PreTokenizer(
        steps=(
            Regex("[\r\n]"),
            Regex(r"\s?\p{L}+"),
            Regex(r"\s?\p{P}+"),
            Regex(r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            _DIGIT,
        )
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"), _DEEPSEEK3_SETTINGS),
    "spark2_5": PreTokenizer(
        steps=(
            _3_DIGITS,
            Regex(_KANA_KANJI),
            Regex(rf"{_PUNCTUATED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"),
            _DIGIT,
        )
    ),
    "youtu": PreTokenizer(
        steps=(
            Regex(
                r"[\uac00-\ud7a3\u3131-\u318e]+"
                r"|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
                r"|[\u3105-\u312f]+|" + _KANA_KANJI
            ),
            Regex(rf"{_CASED_MARKS}|\p{{N}}|{_TAIL_SLASH}"),
        ),
        ignore_merges=True,
    ),
    "falcon": PreTokenizer(steps=(Regex(r"[\p{P}\$\+<=>\^~\|`]+"), _GPT2, Regex("[0-9][0-9][0-9]"))),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGIT_GPT2
    ),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ),
        _GPT2_SETTINGS,
    ),
    **dict.fromkeys(
        (
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
        _QWEN2_SETTINGS,
    ),
    "qwen35": PreTokenizer(
        steps=(
            Regex(
                rf"{_CONTRACTION}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
            ),
        )
    ),
    "ufakzeka": PreTokenizer(steps=(Regex(rf"{_START}\p{{L}}+|\p{{N}}|{_TAIL}"),)),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer(steps=(_BLOOM,))),
    "viking": PreTokenizer(steps=(_BLOOM, _DIGIT)),
    "chatglm-bpe": _CHATGLM,
    **dict.fromkeys(("glm4", "glm5"), replace(_CHATGLM, ignore_merges=True)),
    "tekken": PreTokenizer(
        steps=(Regex(rf"{_CASED}|\p{{N}}|{_TAIL_SLASH}"),),
        ignore_merges=True,
        add_bos=True,
    ),
    "chameleon": PreTokenizer(
        steps=(
            Regex("<sentinel:[0-9]+>"),
            Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Regex(r"([\t\n]|    |  )"),
            _DIGIT,
            Regex(r"[\p{P}!-/:-@\[-`{-~]"),
            _GPT2,
        ),
        add_bos=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "granite-embed-multi-97m": PreTokenizer(
        steps=(
            Regex(
                _cased(r"[\p{Upper}\p{M}]", r"[\p{Lower}\p{M}]", _CONTRACTION + "?") + rf"|\p{{N}}{{1,3}}|{_TAIL_SLASH}"
            ),
        ),
        ignore_merges=True,
    ),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA),
    "superbpe": PreTokenizer(steps=(Regex(r"\p{N}+"), DigitMarks())),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "seed-coder": PreTokenizer(
        steps=(Regex(rf"{_CONTRACTION}|{_START}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"),)
    ),
    "kimi-k2": PreTokenizer(
        steps=(
            Regex(
                rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}\p{{HanL}}]?\p{{L}}+{_CONTRACTION}?|\p{{N}}{{1,3}}"
                rf"| ?[^\s\p{{L}}\p{{N}}\p{{HanL}}]+[\r\n]*|{_SPACES}"
            ),
        )
    ),
    "afmoe": PreTokenizer(
        steps=(
            DigitGroups(),
            Regex(
                r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
                r"\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
            ),
            _DEEPSEEK3,
        )
    ),
    "laguna": PreTokenizer(steps=(_LINES, _QWEN2)),
    "exaone-moe": PreTokenizer(
        steps=(
            Regex(
                rf"{_CONTRACTION}|{_START}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
        )
    ),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA4),
    "sarvam-moe": PreTokenizer(steps=(_LINES,), byte_level=False, escape_spaces=True),
    "whitespace": PreTokenizer(steps=(Regex(r"\S+"),), byte_level=False),
}


def find_pre_tokenizer(name: str, where: str) -> PreTokenizer:
    """Return the pre-tokenizer of a ``tokenizer.ggml.pre`` name; an empty name is ``default``, as in llama.cpp.

    Raises:
        FormatError: the name is not known.
    """
    try:
        return PRE_TOKENIZERS[name or "default"]
    except KeyError:
        advice = "If you know that it splits as one of the known names, give that name with --override-pre NAME"
        raise FormatError(
            f"{where}: pre-tokenizer {quote(name)} is not known. {advice}: {', '.join(sorted(PRE_TOKENIZERS))}"
        ) from None
