"""Make tiny tokenizers of every kind with ``transformers``, and the token ids that they give.

A developer's tool like ``make_goldens.py``: the tests read only what it writes into ``tokenizers/``. Run it as

    python tests/goldens/make_tokenizers.py

in an environment with ``transformers``, ``tokenizers`` and ``sentencepiece``.
"""

from __future__ import annotations

# ruff: noqa: RUF001
import io
import json
import re
import shutil
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).parent / "tokenizers"

LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "A tokenizer cuts a text into pieces; the pieces are numbers, and the numbers are what a model reads.",
    "There were 3 men in the boat, 33 on the shore, and 1234567 fish in the sea.",
    "def add(first, second):",
    "    return first + second  # the sum of the two",
    "for name in names:",
    '        print(f"{name}: {len(name)} characters")',
    "Grüße aus Köln: ein Café ist kein Kaffeehaus, und naïve Geister wohnen in Öfen.",
    "Le cœur a ses raisons que la raison ne connaît point; c'était déjà l'été.",
    "Все счастливые семьи похожи друг на друга, каждая несчастливая несчастлива по-своему.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "I'm sure that it's what they've said, and she'll say that he'd do it; WE'RE NOT SURE.",
]

TEXTS = [
    "",
    "Hello world",
    "The quick brown fox, the lazy dog.",
    "I've said it's 12345678 times; WE'LL SEE.",
    "two  spaces,   three    four\tand a tab",
    "a line\nanother\n\n\nand some more\r\n",
    "def f(x):\n    return x + 1\n",
    "Grüße, naïve cœur, похожи, 猫である。",
    "emoji 🦙🦙 and e\u0301 with an accent, \u200b a zero width space",
    "...!!!??? ---- ====== ``` \"quoted\" 'single'",
    "<s>text</s> and <|im_start|>user<|im_end|>",
]

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{TAIL}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{TAIL}"


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(pre: pre_tokenizers.PreTokenizer, special: list[str], *, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer


def save(name: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Write the files, and the ids that transformers gives when it reads them again."""
    folder = OUT / name
    tokenizer.save_pretrained(folder)
    for path in folder.glob("tokenizer*.json"):
        values = json.loads(path.read_text())
        values.pop("vocab_file", None)
        text = json.dumps(values, ensure_ascii=False, indent=1 if path.name == "tokenizer_config.json" else None)
        path.write_text(text + "\n")
    again = transformers.AutoTokenizer.from_pretrained(folder)
    ids = {text: again(text).input_ids for text in TEXTS}
    (folder / "ids.json").write_text(json.dumps(ids, ensure_ascii=False, indent=None) + "\n")
    print(name, len(again), sum(path.stat().st_size for path in folder.iterdir()), "bytes")


def byte_level_kinds() -> None:
    fast = transformers.PreTrainedTokenizerFast
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    llama3 = byte_level(split(LLAMA3), special, ignore_merges=True)
    begin = llama3.token_to_id(special[0])
    template = processors.TemplateProcessing(
        single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]} $B", special_tokens=[(special[0], begin)]
    )
    llama3.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    save("llama3", fast(tokenizer_object=llama3, bos_token=special[0], eos_token=special[2]))
    qwen2 = byte_level(split(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    qwen2.normalizer = normalizers.NFC()
    qwen2.post_processor = processors.ByteLevel(trim_offsets=False)
    save("qwen2", fast(tokenizer_object=qwen2, eos_token="<|im_end|>", pad_token="<|endoftext|>"))
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    smollm = byte_level(digits, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    save("smollm", fast(tokenizer_object=smollm, bos_token="<|im_start|>", eos_token="<|im_end|>"))


def sentencepiece_model(folder: Path, **settings: object) -> None:
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
        **settings,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = {text: processor.encode(text) for text in [*TEXTS, " one space", "  two spaces"]}
    (folder / "sentencepiece_ids.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n")


def sentencepiece_kinds() -> None:
    folder = OUT / "llama2"
    sentencepiece_model(folder, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, add_dummy_prefix=True)
    save("llama2", transformers.LlamaTokenizer.from_pretrained(folder, add_bos_token=True))
    folder = OUT / "gemma"
    turns = ["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
    sentencepiece_model(
        folder, pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False, user_defined_symbols=turns,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
    )  # fmt: skip
    save("gemma", transformers.GemmaTokenizer.from_pretrained(folder, add_bos_token=True))


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    byte_level_kinds()
    sentencepiece_kinds()
    for path in OUT.rglob("*.json"):
        assert not re.search(r"/(home|root|tmp)/", path.read_text()), path


if __name__ == "__main__":
    main()
