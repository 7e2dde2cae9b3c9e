"""The table of speeds: every row of it, on this machine, into ``bench/results/<cpu>.json``.

    python bench/table.py [--models FOLDER] [--only qwen15,smollm2]
                          [--parts speed,versus,batch,depth,start,kernels]
                          [--peer-python PROGRAM] [--peer-completion PROGRAM] [--threads N]

Wants a quiet machine for about 20 minutes. Models that the folder lacks are skipped, and so is the comparison with
llama.cpp where llama-cpp-python is not installed. What is measured replaces what the file has of it, the rest stays:
parts and models may be run one at a time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from llmrun.runtime.measure.machine import cpu_name
from llmrun.runtime.measure.statistics import Spread, quantile
from llmrun.runtime.simd.isa import choose_target
from llmrun.runtime.threads import default_threads

RESULTS = Path(__file__).with_name("results")
MODELS = {
    "qwen15": "qwen2.5-coder-1.5b-q4_k_m.gguf",
    "qwen05": "qwen2.5-coder-0.5b-q4_k_m.gguf",
    "smollm2": "smollm2-135m-instruct-q4_1.gguf",
    "gemma3": "gemma3-270m-q4_k_m.gguf",
}
PARTS = ("speed", "versus", "batch", "depth", "start", "kernels")
KEY = ("model", "test", "n_threads", "n_batch", "n_ubatch", "type_k")
N_START = 11
LEFT_OUT = ("samples_ns", "samples_ts", "own_ns", "peer_ns", "model_filename", "peer_system_info")


def bench(model, *args):
    """Return the rows of one run of ``llmrun bench``."""
    command = [sys.executable, "-m", "llmrun", "bench", "-m", str(model), "-o", "json", *map(str, args)]
    print("+", " ".join(command[1:]), file=sys.stderr, flush=True)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        sys.exit(f"llmrun bench ended with {run.returncode}")
    return json.loads(run.stdout)


def has_peer(python):
    return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, check=False).returncode == 0


def speed_rows(path, threads):
    return bench(path, "-p", 512, "-n", 128, "-t", threads)


def batch_rows(path, threads):
    is_wanted = path.name == MODELS["qwen15"]
    return bench(path, "-npl", "1,2,4,8", "-npp", 64, "-ntg", 32, "-t", threads) if is_wanted else []


def depth_rows(path, threads):
    is_wanted = path.name == MODELS["qwen05"]
    return bench(path, "-p", 512, "-n", 32, "-d", 8192, "-r", 3, "-t", threads, "-ctk", "f16,q8_0") if is_wanted else []


def versus_rows(path, threads, peer_python):
    """Return the ratios to llama.cpp: every model, the 0.5B also in a long context, the 1.5B also in batches."""
    tests = [["-p", 512, "-n", 128]]
    if path.name == MODELS["qwen05"]:
        tests.append(["-p", 512, "-n", 32, "-d", "8192", "-fa", "on"])
    if path.name == MODELS["qwen15"]:
        tests.append(["-npl", "8", "-npp", 64, "-ntg", 16])
    peer = ["--vs", "llama-cpp", "--peer-python", peer_python]
    return [row for test in tests for row in bench(path, *test, "-t", threads, *peer)]


def start_rows(path, threads, peer):
    """Return how long whole processes take that generate one token, llmrun's and llama-completion's in turn.

    Both with the context that they take by themselves, llmrun by its console script. The page cache holds the file.
    The medians, and the quartiles of the ratios of neighbours.
    """
    tail = ["-n", "1", "--temp", "0", "-t", str(threads)]
    own = [str(Path(sys.executable).with_name("llmrun")), "run", str(path), "-p", "Hi", *tail]
    commands = [own] + ([[peer, "-m", str(path), "-no-cnv", "-p", "Hi", *tail]] if peer else [])
    times = [[seconds_of(command) for command in commands] for _ in range(N_START + 1)][1:]
    row = {"test": "start", "n_threads": threads, "own_s": round(quantile([t[0] for t in times], 0.5), 4)}
    if peer:
        ratios = Spread.of([t[1] / t[0] for t in times])
        row |= {
            "peer_s": round(quantile([t[1] for t in times], 0.5), 4), "n_ratio": ratios.n,
            "ratio_lower": round(ratios.lower, 4), "ratio_median": round(ratios.median, 4),
            "ratio_upper": round(ratios.upper, 4),
        }  # fmt: skip
    print("+", row, file=sys.stderr, flush=True)
    return [row]


def seconds_of(command):
    """Return how long a process takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


MEASURE = {"speed": speed_rows, "batch": batch_rows, "depth": depth_rows}


def kernel_rows():
    """Return {format: {"T=16": Gop/s, …}} as ``bench_kernels.py`` prints them."""
    script = str(Path(__file__).with_name("bench_kernels.py"))
    run = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    lines = run.stdout.splitlines()
    heads = next(line for line in lines if line.startswith("type")).replace("T=1 GB/s", "T=1_GB/s").split()[1:]
    rows = {}
    for line in lines[lines.index(next(line for line in lines if line.startswith("type"))) + 1 :]:
        name, *values = line.split()
        rows[name] = {head: float(value) for head, value in zip(heads, values, strict=False)}
    return rows


def compact(row, path):
    """Return a row without single samples and without this machine's folders."""
    return {k: v for k, v in row.items() if k not in LEFT_OUT} | {"model": path.name}


def merged(old, new):
    """Return old rows with those of the same key replaced by new ones."""

    def key(row):
        return tuple(row.get(name) for name in KEY)

    fresh = {key(row) for row in new}
    return [row for row in old if key(row) not in fresh] + new


def write(path, value):
    """Write the results; the file appears whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("LLMRUN_TEST_MODELS"))
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--peer-completion", help="llama.cpp's llama-completion, to compare starts with")
    parser.add_argument("--threads", type=int, default=default_threads()[0])
    parser.add_argument("--note", help="what the machine is, in the reader's words")
    args = parser.parse_args()
    if args.models is None:
        from llmrun.cli.models_folder import models_folder

        args.models = models_folder()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {args.threads}t {choose_target().name}".lower()).strip("-")
    path = RESULTS / f"{slug}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {
        "cpu": cpu_name(),
        "note": args.note or results.get("note", ""),
        "isa": choose_target().name,
        "n_threads": args.threads,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **{part: results.get(part, []) for part in PARTS},
    }
    parts = args.parts.split(",")
    for name in args.only.split(","):
        model = args.models / MODELS[name]
        if not model.exists():
            print(f"{model} is not there: skipped", file=sys.stderr)
            continue
        for part in parts:
            if part in MEASURE:
                rows = MEASURE[part](model, args.threads)
            elif part == "start":
                rows = start_rows(model, args.threads, args.peer_completion)
            elif part == "versus" and has_peer(args.peer_python):
                rows = versus_rows(model, args.threads, args.peer_python)
            else:
                continue
            results[part] = merged(results[part], [compact(row, model) for row in rows])
            write(path, results)
    if "kernels" in parts:
        results["kernels"] = kernel_rows()
        write(path, results)
    print(path)


if __name__ == "__main__":
    main()
