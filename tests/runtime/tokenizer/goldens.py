"""Token ids that llama.cpp gives for the tiny vocabularies; run as a script to write them again.

    python -m tests.runtime.tokenizer.goldens PATH_OF_llama-tokenize

They were written with llama.cpp as in llama-cpp-python 0.3.36.
"""

# ruff: noqa: RUF001 - text in many scripts

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ...tiny_gguf import write_gguf
from .tiny_vocabularies import VOCABULARIES

PATH = Path(__file__).parent / "goldens.json"
TEXTS = [
    "The quick brown fox",
    " the  dog   did    not\t\tmind \n\n\n It's",
    "Don't DON'T don'T they'll we've I'm 'tis ''s",
    "12 123 1234 12345678 3.14 ½ ٣٤٥ Ⅷ ①②",
    "\n", "\n\n", "\r\n\r\n", " ", "  ", "     ", "\t", "a\n\n\n\nb", "\u3000\u00a0x\u2028y\x85z", "x ", " x  ",
    "Äpfel für naïve Übung — à la café", "A\u0308pfel cafe\u0301 \u0301",
    "Привет, мир! 你好，世界。 こんにちは 한국어 ไทย नमस्ते दुनिया العربية",
    "🙂🙂👍 👨‍👩‍👧 🏳️‍🌈 😶‍🌫️",
    "def merge(left, right):\n    return left + right  # the sum",
    "unbelievable unhappiness UNHAPPILY [MASK] café-able",
    "<|im_start|>system\nhi<|im_end|><|im_end|>\n", "<|im_<|im_end|>end|>", "<s>a</s> <unk> <0x41> <0x0A>",
    "<start_of_turn>user\nhi<end_of_turn>\n", "a<tool>b </tool> <tool><tool", "▁ ▁▁ a▁b Ġx", "<|endoftext|", "[PAD1]",
    "\x00\x01\x7f\x1c\x1f", "\ufeff\u200b\u200d\ufffd", "\U0010ffff\ue000\U000e0001", "ſ İ ß ﬁ ǅ ʰ ΑΣ",
]  # fmt: skip


def _run(tool: str, model: Path, text: str, *flags: str) -> list[int]:
    with tempfile.NamedTemporaryFile("wb", suffix=".txt") as file:
        file.write(text.encode())
        file.flush()
        command = [tool, "-m", str(model), "-f", file.name, "--ids", "--log-disable", *flags]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])


def main(tool: str) -> None:
    """Ask llama.cpp for every text, with and without control tokens."""
    goldens: dict[str, dict[str, list[list[int]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in VOCABULARIES.items():
            model = write_gguf(Path(folder) / f"{name}.gguf", make(), {})
            goldens[name] = {
                "plain": [_run(tool, model, text, "--no-parse-special") for text in TEXTS],
                "special": [_run(tool, model, text, "--no-bos") for text in TEXTS],
            }
    lines = [
        f'"{name}": {{\n'
        + ",\n".join(f'  "{mode}": {json.dumps(ids, separators=(",", ":"))}' for mode, ids in modes.items())
        + "\n}"
        for name, modes in goldens.items()
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
