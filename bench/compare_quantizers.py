"""Divergences of quantised files from their source: llmrun's methods beside llama-quantize, one evaluator for all.

    python bench/compare_quantizers.py SOURCE.gguf --llama-cpp FOLDER [--type Q4_K_M] [--methods rtn,imatrix,awq]

Makes the files in a scratch folder, measures each with ``llmrun eval kld`` (float activations on both sides, a text
that was not calibrated on) and prints a table for LOG.md. With ``--imatrix FILE`` both programs also quantise with
that matrix.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLMRUN = [sys.executable, "-m", "llmrun"]
HELD_OUT = Path(__file__).parents[1] / "tests/data/held_out.txt"


def run(*command):
    """Run a command and return (seconds, standard output)."""
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def jobs(args, folder):
    """Yield (name, path, command that writes it)."""
    quantize = Path(args.llama_cpp) / "llama-quantize"
    mine = [*LLMRUN, "quantize", args.source]
    if "llama.cpp" in args.methods:
        yield "llama-quantize", folder / "peer.gguf", [quantize, args.source, folder / "peer.gguf", args.type, "2"]
    if args.imatrix:
        path = folder / "peer-i.gguf"
        yield "llama-quantize --imatrix", path, [quantize, "--imatrix", args.imatrix, args.source, path, args.type, "2"]
        path = folder / "mine-i.gguf"
        yield "llmrun --imatrix", path, [*mine, path, args.type, "--imatrix", args.imatrix]
    for method in args.methods:
        if method != "llama.cpp":
            path = folder / f"{method}.gguf"
            yield f"llmrun {method}", path, [*mine, path, *method_arguments(method, args.type)]


def method_arguments(method, kind):
    """Return arguments for a method; ``target:...`` stands for options of a budget, ``+`` between them."""
    if method.startswith("target:"):
        return method.removeprefix("target:").split(" ")
    return [kind, "--method", method]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--llama-cpp", default=".", help="folder of llama-quantize")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--methods", default="llama.cpp,rtn,imatrix,awq,gptq,awq+gptq", type=lambda s: s.split(","))
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--chunks", type=int, default=12)
    args = parser.parse_args()
    first = None
    print("| | bytes | s | divergence | to the first | 99 % | same top token |\n|---|---|---|---|---|---|---|")
    for name, path, command in jobs(args, Path(tempfile.mkdtemp(dir=args.source.parent))):
        seconds, _ = run(*command)
        measure = [*LLMRUN, "eval", "kld", path, args.source, "-f", args.text, "--chunks", args.chunks, "--json"]
        found = json.loads(run(*measure)[1])
        mean, error = found["kld_mean"], found["kld_mean_error"]
        first = first or mean
        print(
            f"| {name} | {path.stat().st_size:,} | {seconds:.0f} | {mean:.5f} ± {error:.5f}"
            f" | {mean / first:.3f} | {found['kld_q0.99']:.3f} | {100 * found['same_top']:.1f} % |",
            flush=True,
        )
        path.unlink()


if __name__ == "__main__":
    main()
