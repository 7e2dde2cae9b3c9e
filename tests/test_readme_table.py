"""The README's speeds are those of ``bench/results``."""

from importlib import util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_script():
    spec = util.spec_from_file_location("readme_table", ROOT / "bench" / "readme_table.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(**more):
    return {
        "cpu": "A CPU", "note": "", "isa": "avx2", "n_threads": 2, "date": "2026-01-01",
        "speed": [], "versus": [], "batch": [], "depth": [], "start": [], "kernels": {},
    } | more  # fmt: skip


MODEL = "smollm2-135m-instruct-q4_1.gguf"
SPEED = {"model": MODEL, "test": "pp512", "avg_ts": 1234.56, "bandwidth_pct": 3.2, "int8_pct": 55.4}
VERSUS = {
    "model": MODEL, "test": "pp512", "own_ts": 1200.0, "ratio_lower": 5.9, "ratio_median": 6.0, "ratio_upper": 6.25,
    "is_valid": True, "reason": "",
}  # fmt: skip


def test_readme_is_up_to_date():
    expected = load_script().readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == expected, "run `python bench/readme_table.py --write`"


def test_a_row_joins_speed_and_ratio():
    text = load_script().table(result(speed=[SPEED], versus=[VERSUS]))
    assert "| SmolLM2-135M Q4_1 | pp512 | 1234.6 | 6.00 (5.90 to 6.25) | 3 | 55 |" in text
    assert "*" not in text


def test_an_invalid_comparison_is_marked():
    text = load_script().table(result(versus=[VERSUS | {"is_valid": False, "reason": "too slow"}]))
    assert "| 1200.0 | 6.00 (5.90 to 6.25)* |  |  |" in text
    assert text.endswith("*: too slow.")


def test_every_reason_is_given_once_and_settings_are_told_apart():
    bad = VERSUS | {"is_valid": None, "reason": "busy"}
    crowded = SPEED | {"n_threads": 8, "avg_ts": 500.0, "bandwidth_pct": None, "int8_pct": None}
    deep = SPEED | {"test": "tg32 @ d8192", "type_k": "q8_0"}
    start = {"model": MODEL, "test": "start", "n_threads": 2, "own_s": 0.3, "peer_s": 0.33, "n_ratio": 11}
    start |= {"ratio_lower": 1.0, "ratio_median": 1.1, "ratio_upper": 1.25}
    text = load_script().table(
        result(speed=[SPEED, crowded], versus=[bad, bad | {"test": "tg8"}], depth=[deep], start=[start])
    )
    assert text.count("*: busy.") == 1
    assert "| pp512, 8 threads | 500.0 |" in text
    assert "| tg32 @ d8192, KV in q8_0 | 1234.6 |" in text
    assert "SmolLM2-135M Q4_1 0.30 s, 0.91 (0.80 to 1.00) times llama-completion's." in text
