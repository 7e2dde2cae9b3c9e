"""The README's table of speeds, from ``bench/results/*.json``.

    python bench/readme_table.py            print it
    python bench/readme_table.py --write    put it between the README's markers

A test compares the README with this.
"""

import json
import sys
from pathlib import Path

BENCH = Path(__file__).parent
README = BENCH.parent / "README.md"
BEGIN, END = "<!-- speed table: bench/readme_table.py -->", "<!-- end of the speed table -->"
NAMES = {
    "qwen2.5-coder-1.5b-q4_k_m.gguf": "Qwen2.5-Coder-1.5B Q4_K_M",
    "qwen2.5-coder-0.5b-q4_k_m.gguf": "Qwen2.5-Coder-0.5B Q4_K_M",
    "smollm2-135m-instruct-q4_1.gguf": "SmolLM2-135M Q4_1",
    "gemma3-270m-q4_k_m.gguf": "Gemma3-270M Q4_K_M",
}


OWN = ("speed", "depth")  # parts that have llmrun alone; the files have more: batches, more threads than processors


def table(results):
    """Return one machine's table: a row for each model and test, with the ratio to llama.cpp where it was taken."""

    def key(row):
        name = row["test"]
        name += f", KV in {row['type_k']}" if row.get("type_k", "f16") != "f16" else ""
        n_thread = row.get("n_threads", results["n_threads"])
        return row["model"], name + (f", {n_thread} threads" if n_thread != results["n_threads"] else "")

    versus = {key(r): r for r in results["versus"]}
    speed = {key(r): r for part in OWN for r in results.get(part, ())}
    lines = [
        f"{results['note'] or results['cpu']}, {results['n_threads']} threads, {results['isa']}, {results['date']}:",
        "",
        "| model | test | tok/s | times llama.cpp (quartiles of its rounds) | % of read bandwidth | % of int8 peak |",
        "|---|---|---:|---:|---:|---:|",
    ]
    keys = [found for name in NAMES for found in dict.fromkeys([*speed, *versus]) if found[0] == name]
    for found in keys:
        row, ratio = speed.get(found), versus.get(found)
        rate = row["avg_ts"] if row else ratio["own_ts"]
        lines.append(
            f"| {NAMES[found[0]]} | {found[1]} | {rate:.1f} | {ratio_text(ratio)} |"
            f" {share(row, 'bandwidth_pct')} | {share(row, 'int8_pct')} |"
        )
    reasons = dict.fromkeys(r["reason"] for r in results["versus"] if r["is_valid"] is not True)
    lines += ["", *(f"*: {reason}." for reason in reasons)] if reasons else []
    starts = [start_text(r) for r in results["start"] if "own_s" in r]
    lines += ["", f"Whole processes of one token: {'; '.join(starts)}."] if starts else []
    return "\n".join(lines)


def start_text(row):
    """Return how long ``llmrun run`` of one token takes, and how many times that llama.cpp takes."""
    text = f"{NAMES[row['model']]} {row['own_s']:.2f} s"
    if "ratio_median" in row:
        lower, middle, upper = (1 / row[f"ratio_{name}"] for name in ("upper", "median", "lower"))
        text += f", {middle:.2f} ({lower:.2f} to {upper:.2f}) times llama-completion's"
    return text


def ratio_text(ratio):
    if ratio is None:
        return ""
    star = "" if ratio["is_valid"] else "*"
    return f"{ratio['ratio_median']:.2f} ({ratio['ratio_lower']:.2f} to {ratio['ratio_upper']:.2f}){star}"


def share(row, name):
    return "" if row is None or row.get(name) is None else f"{row[name]:.0f}"


def block():
    """Return what stands between the markers."""
    files = sorted((BENCH / "results").glob("*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return "\n\n".join(table(r) for r in results if r["speed"] or r["versus"])


def readme():
    """Return the README with the table put in."""
    text = README.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{README}: expected one pair of markers: {BEGIN} … {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(readme(), encoding="utf-8")
    else:
        print(block())
