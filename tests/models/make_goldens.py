"""Make the goldens: the truth is llama.cpp on the model's weights, dequantised to float32.

    python -m tests.models.make_goldens --llama-cpp build/bin --models FOLDER --texts FOLDER --scratch FOLDER [NAME ...]

For each model: ``llama-quantize --allow-requantize MODEL NAME-f32.gguf F32``; for each golden in ``GOLDENS``
``llama-perplexity --kl-divergence-base`` on the first chunks of its text, with that file and with the model itself.
What is in the scratch folder already is not made again. Needs 4 bytes of disk for each weight, and 0.5 GB.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np

from llmrun.formats.gguf import GgufFile
from llmrun.runtime.tokenizer import load_tokenizer

from .base_file import read_base_file
from .golden import Golden, Summary, figures, keep_top
from .models import MODELS, sha256

# What a golden's name ends with: text, n_ctx, chunks. The short ones are for the checked interpreter, which is slow.
GOLDENS = {"english": ("english", 512, 2), "python": ("python", 512, 2), "short": ("english", 128, 2)}
PIECES = 8  # of a chunk, to keep intermediate results below 0.1 GB


def run(output, *command):
    """Run a program that writes a file, unless the file is there; remove what a failed run left."""
    if output.exists():
        return
    log = output.with_suffix(".log")
    with log.open("w") as stream:
        result = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if result.returncode or not output.exists():
        output.unlink(missing_ok=True)
        raise SystemExit(f"{command[0]} failed (exit status {result.returncode}), see {log}")


def logits_file(args, model, name, kind):
    """Return llama.cpp's logits of a GGUF file on the first chunks of a text."""
    text, n_ctx, n_chunk = GOLDENS[kind]
    output = args.scratch / f"{name}-{kind}.base"
    run(
        output, args.llama_cpp / "llama-perplexity", "-m", model, "-f", args.texts / f"{text}.txt", "-c", str(n_ctx),
        "-b", "512", "-t", str(args.threads), "--chunks", str(n_chunk), "--kl-divergence-base", output,
    )  # fmt: skip
    return read_base_file(output)


def make(args, name, kind):
    """Write one golden and print llama.cpp's figures."""
    file_name, expected = MODELS[name]
    model = args.models / file_name
    if sha256(model) != expected:
        raise SystemExit(f"{model} has another SHA-256 than models.py")
    f32 = args.scratch / f"{name}-f32.gguf"
    run(f32, args.llama_cpp / "llama-quantize", "--allow-requantize", model, f32, "F32", str(args.threads))
    truth = logits_file(args, f32, f"{name}-f32", kind)
    quantised = logits_file(args, model, name, kind)
    with GgufFile.open(model) as file:
        tokenizer = load_tokenizer(file.metadata)
    text = GOLDENS[kind][0]
    ids = tokenizer.encode((args.texts / f"{text}.txt").read_text(encoding="utf-8").removesuffix("\n"))
    if ids[: truth.tokens.size] != truth.tokens.reshape(-1).tolist():
        raise SystemExit(f"{name}, {text}: llmrun's token ids are not llama.cpp's")
    parts, target_nll = [], []
    for chunk in range(truth.n_chunk):
        log_p, is_cut = truth.log_probabilities(chunk)
        parts += [keep_top(rows) for rows in np.array_split(log_p, PIECES)]
        targets = truth.tokens[chunk, truth.first + 1 :, None]
        nll = -np.take_along_axis(log_p, targets, axis=1)
        target_nll.append(np.where(np.take_along_axis(is_cut, targets, axis=1), np.nan, nll)[:, 0])
    top, log_p, rest = (np.concatenate(values) for values in zip(*parts, strict=True))
    n_row = len(top)
    golden = Golden(
        sha256=expected, tokens=truth.tokens, bos=tokenizer.bos_id if tokenizer.add_bos else -1, first=truth.first,
        top=top, log_p=log_p, rest=rest, target_nll=np.concatenate(target_nll).astype(np.float32),
        llama_cpp=np.empty((n_row, 3)), source=f"llama.cpp {args.version}, {f32.name}, {text}.txt",
    )  # fmt: skip
    row = 0
    for chunk in range(quantised.n_chunk):
        for log_q in np.array_split(quantised.log_probabilities(chunk)[0], PIECES):
            golden.llama_cpp[row : row + len(log_q)] = figures(golden, row, log_q)
            row += len(log_q)
    golden.save(f"{name}-{kind}")
    print(f"{name}-{kind}: {n_row} rows, {Summary.of(golden, golden.llama_cpp)}", flush=True)


def main():
    """Read the command line and make what it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, what in (
        ("--llama-cpp", "folder of llama-quantize and llama-perplexity"),
        ("--models", "folder of the GGUF files"),
        ("--texts", "folder of english.txt and python.txt"),
        ("--scratch", "folder for large files that are made on the way"),
    ):
        parser.add_argument(option, type=Path, required=True, help=what)
    parser.add_argument("--version", default="", help="llama.cpp's commit, kept in the goldens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    args = parser.parse_args()
    for name in args.names:
        for kind in GOLDENS:
            make(args, name, kind)


if __name__ == "__main__":
    main()
