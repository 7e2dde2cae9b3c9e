"""The table of speeds: every row of it, on this machine, into ``bench/results/<cpu>.json``.

    python bench/table.py [--models FOLDER] [--only qwen15,smollm2] [--parts speed,versus,batch,depth,start,kernels]
                          [--peer-python PROGRAM] [--threads N]

Wants a quiet machine. Models that the folder lacks are skipped, and so is the comparison with llama.cpp where
llama-cpp-python is not installed. What is measured replaces what the file has of it, the rest stays: parts and models
may be run one at a time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from llmrun.runtime.measure.machine import cpu_name
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


def start_rows(path, threads):
    """Return one row with the time of a whole process; its own speed does not matter."""
    return bench(path, "-p", 0, "-n", 1, "-r", 1, "-t", threads, "--starts", 11, "--no-roofline")


def batch_rows(path, threads):
    is_wanted = path.name == MODELS["qwen15"]
    return bench(path, "-npl", "1,2,4,8", "-npp", 64, "-ntg", 32, "-t", threads) if is_wanted else []


def depth_rows(path, threads):
    is_wanted = path.name == MODELS["qwen05"]
    return bench(path, "-p", 512, "-n", 32, "-d", 8192, "-r", 3, "-t", threads) if is_wanted else []


MEASURE = {"speed": speed_rows, "start": start_rows, "batch": batch_rows, "depth": depth_rows}


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
    parser.add_argument("--peer-python", default=sys.executable)
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
            elif part == "versus" and has_peer(args.peer_python):
                rows = bench(
                    model, "-p", 512, "-n", 128, "-t", args.threads, "--vs", "llama-cpp",
                    "--peer-python", args.peer_python,
                )  # fmt: skip
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
