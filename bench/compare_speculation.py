"""Greedy answers with drafts, in tokens per second: llmrun beside llama.cpp's plain decoding and its drafts.

    python bench/compare_speculation.py TARGET.gguf DRAFT.gguf --llama-cpp FOLDER [--prompts code-cache,edit-rename]

Every program gets the same rendered prompt (``runtime/texts/drafts/``) and the same files, in turn, ``--rounds`` times.
The rates are the programs' own, without reading the prompt. llama.cpp's best setting is the larger of its medians.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.chat_template import ChatTemplate
from llmrun.runtime.texts import draft_prompts
from llmrun.runtime.tokenizer.load import load_tokenizer

RATE = {
    "llama-completion": re.compile(r"\beval time =.*?/ *\d+ (?:runs|tokens).*?([\d.]+) tokens per second"),
    "llama-speculative-simple": re.compile(r"decoded +\d+ tokens in.*?speed: +([\d.]+) t/s"),
}


def output(command):
    """Return all that a command says; an error ends the comparison."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout, done.stderr


def commands(options, text, folder):
    """Yield (name, command) of every setting."""
    prompt = Path(folder) / "prompt.txt"
    prompt.write_text(text + "\n")  # llama.cpp drops the last line break
    common = ["-n", options.n, "-t", options.threads, "-c", 2560, "--temp", 0]
    peer = ["-m", options.target, "-f", prompt, *common, "-b", 2048, "--no-escape"]
    yield "llama.cpp plain", [options.llama_cpp / "llama-completion", *peer, "-no-cnv"]
    simple = [options.llama_cpp / "llama-speculative-simple", *peer]
    for n in options.draft_max:
        drafting = ["-md", options.draft, "--spec-type", "draft-simple", "--spec-draft-n-max", n]
        yield f"llama.cpp draft-simple {n}", [*simple, *drafting]
    for kind in options.ngram:
        yield f"llama.cpp {kind}", [*simple, "--spec-type", kind]
    mine = [sys.executable, "-m", "llmrun", "run", options.target, "-p", text, *common, "--raw", "--parse-special"]
    mine.append("--json")
    yield "llmrun", [*mine, "--draft", options.draft]
    yield "llmrun copies alone", [*mine, "--spec", "ngram"]
    yield "llmrun plain", [*mine, "--spec", "off"]


def rate(command):
    """Run a setting; return its tokens per second."""
    out, err = output(command)
    pattern = RATE.get(Path(command[0]).name)
    if pattern is None:
        return json.loads(out)["timings"]["decode_tps"]
    found = pattern.findall(out + err)
    if not found:
        raise SystemExit(f"no rate in what {command[0]} says:\n{(out + err)[-1500:]}")
    return float(found[-1])


def main():
    """Print a line for every prompt and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of its programs")
    parser.add_argument("--prompts", default="code-cache,edit-rename")
    parser.add_argument("--draft-max", default="3,8", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--ngram", default="ngram-simple,ngram-map-k", type=lambda text: text.split(","))
    parser.add_argument(
        "--only",
        default="",
        type=lambda text: tuple(text.split(",")),
        help="settings whose names begin with one of these",
    )
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    with GgufFile.open(options.target) as file:
        tokenizer = load_tokenizer(file.metadata)
        template = ChatTemplate.from_metadata(file.metadata, tokenizer)
    texts = {f"{p.kind}-{p.name}": p.text for p in draft_prompts()}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.prompts.split(","):
            text = texts[name] if template is None else template.render([{"role": "user", "content": texts[name]}])
            settings = [pair for pair in commands(options, text, folder) if pair[0].startswith(options.only)]
            rates = {setting: [] for setting, _ in settings}
            for _ in range(options.rounds):
                for setting, command in settings:
                    rates[setting].append(rate(command))
                    print(f"{name}: {setting}: {rates[setting][-1]:.2f} tok/s", flush=True)
            for setting, values in rates.items():
                print(f"{name} median: {setting}: {median(values):.2f} tok/s")


if __name__ == "__main__":
    main()
