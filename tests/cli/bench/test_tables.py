"""The tables beside llama-bench's: what is known is shown, what is not is n/a."""

import sys

import pytest

from llmrun.cli.bench.details import details
from llmrun.cli.bench.plot import check_plot, label, plot
from llmrun.cli.bench.versus import comparison_text, judge
from llmrun.cli.declare import UsageError

ROW = {
    "model_filename": "tiny.gguf", "model_type": "llama 1M Q8_0", "cpu_info": "A CPU", "isa": "avx2", "test": "tg8",
    "n_seq": 1, "is_shared": False, "n_threads": 2, "n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "n_prompt": 0,
    "n_gen": 8, "n_depth": 0, "avg_ts": 50.0, "stddev_ts": 1.0, "avg_ns": 160_000_000, "load_ns": 5 * 10**8,
    "start_ns": None, "ttft_ns": None, "itl_p50_ns": 2 * 10**7, "itl_p90_ns": 3 * 10**7, "itl_p99_ns": 4 * 10**7,
    "depth_ns": None, "peak_bytes": 10**8, "read_bytes_s": 2e10, "bandwidth_bytes_s": 4e10, "bandwidth_pct": 50.0,
    "int8_ops_s": 1e10, "int8_peak_ops_s": 1e11, "int8_pct": 10.0, "joules_per_token": None, "cost_per_mtok": None,
    "load_mode": "mmap", "steal_pct": 0.1, "major_faults": 0, "throttles": None,
}  # fmt: skip


def cells(text, line):
    return [cell.strip() for cell in text.splitlines()[line].split("|")[1:-1]]


def test_latency_and_roofline():
    text = details([ROW], "none here")
    assert cells(text, 2) == ["tg8", "", "20.00", "30.00", "40.00", "20.0", "50.0", "10.0", "10.0", "100 MB", "n/a"]
    assert "roofline of 2 threads: 40.0 GB/s read, 100 Gop/s int8" in text
    assert "energy: none here" in text
    assert "warning" not in text
    assert "roofline of 2 threads: 30.0 to 40.0 GB/s" in details([ROW, ROW | {"bandwidth_bytes_s": 3e10}], "")


def test_settings_that_differ_are_columns_of_every_table():
    other = ROW | {"n_threads": 1, "type_k": "q8_0", "load_mode": "none", "load_ns": 7 * 10**8}
    text = details([ROW, other], "-")
    assert cells(text, 0)[:4] == ["threads", "type_k", "lm", "test"]
    assert [cells(text, i)[:4] for i in (2, 3)] == [["2", "f16", "mmap", "tg8"], ["1", "q8_0", "none", "tg8"]]
    assert "llama 1M Q8_0: loaded in 0.500 to 0.700 s" in text
    batched = [r | {"n_depth": 16, "depth_ns": 10**8, "n_seq": n} for r in (ROW, other) for n in (1, 2)]
    assert cells(details(batched, "-").split("\n\n")[1], 0)[:4] == ["threads", "type_k", "lm", "PP"]
    assert label(other, [ROW, other]) == "tg8, 1 thread, q8_0, -lm none"
    assert label(ROW | {"n_batch": 64, "n_ubatch": 32}, [ROW, ROW | {"n_batch": 64, "n_ubatch": 32}]) == (
        "tg8, -b 64, -ub 32"
    )


def test_of_several_models_every_table_says_which():
    one = ROW | {"n_depth": 16, "depth_ns": 10**8}
    rows = [
        r | {"model_filename": f"{i}.gguf", "model_type": f"m{i}"} for i in (1, 2) for r in (one, one | {"n_seq": 2})
    ]
    batched = details(rows, "-").split("\n\n")[1]
    assert [cells(batched, i)[0] for i in range(6)][0::2] == ["model", "m1", "m2"]


def test_what_was_not_measured_is_not_available():
    text = details([ROW | dict.fromkeys(("bandwidth_bytes_s", "bandwidth_pct", "int8_pct", "peak_bytes"))], "-")
    assert cells(text, 2)[6:10] == ["n/a", "10.0", "n/a", "n/a"]
    assert "roofline" not in text


def test_cost_is_a_column_where_there_are_prices():
    text = details([ROW | {"joules_per_token": 0.5, "cost_per_mtok": 0.04167}], "RAPL", has_prices=True)
    assert cells(text, 0)[-2:] == ["J/token", "cost / 1M tokens"]
    assert cells(text, 2)[-2:] == ["0.5", "0.04167"]
    assert "cost: n/a" not in text


def test_a_cost_that_is_not_known_is_not_available_and_says_why():
    text = details([ROW], "none here", has_prices=True)
    assert cells(text, 2)[-2:] == ["n/a", "n/a"]
    assert "cost: n/a, since energy has a price and is not counted" in text


def test_disturbances_are_said():
    text = details([ROW | {"steal_pct": 7.0, "throttles": 3, "major_faults": 5000}], "-")
    assert text.count("warning") == 3


def test_batched_decoding_as_llama_batched_bench_shows_it():
    one = ROW | {"n_depth": 16, "depth_ns": 10**8}
    four = one | {"n_seq": 4, "avg_ns": 2 * 10**8, "depth_ns": 4 * 10**8}
    text = details([one, four], "-").split("\n\n")[1]
    assert cells(text, 0) == ["PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s"]
    assert cells(text, 3) == ["16", "8", "4", "96", "0.400", "160.00", "0.200", "160.00", "0.600", "160.00"]
    shared = details([one, four | {"is_shared": True}], "-").split("\n\n")[1]
    assert cells(shared, 3)[3] == "48"


def compared(test, share):
    return {
        "model_filename": "tiny.gguf", "model_type": "llama 1M Q8_0", "cpu_info": "A CPU", "n_threads": 2, "test": test,
        "own_ts": 20.0, "peer_ts": 10.0, "ratio_lower": 1.9, "ratio_median": 2.0, "ratio_upper": 2.1, "n_ratio": 9,
        "own_bandwidth_pct": None, "peer_bandwidth_pct": share, "engine": "llmrun 1", "isa": "avx2", "peer": "peer 2",
        "peer_system_info": "AVX2 = 1", "sha256": "ab", "n_batch": 2048, "n_ubatch": 512, "type_k": "f16",
        "flash_attn": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "is_valid"),
    [((None, 80.0), True), ((None, 69.9), False), ((90.0, 60.0), False), ((None, None), None), ((90.0, 110.0), None)],
)
def test_a_peer_that_is_not_at_its_best_makes_a_comparison_invalid(shares, is_valid):
    records = [compared(f"tg{i}", share) for i, share in enumerate(shares)]
    verdict = judge(records)
    assert verdict["is_valid"] is is_valid
    text = comparison_text([r | verdict for r in records])
    assert ("INVALID" in text) == (is_valid is False)
    assert ("not checked" in text) == (is_valid is None)
    assert "SHA-256 ab, 2 threads, -b 2048 -ub 512 -ctk f16 -ctv f16 -fa auto" in text
    assert "peer 2: AVX2 = 1" in text
    other = [r | verdict | {"n_ubatch": 64} for r in records]
    assert cells(comparison_text([r | verdict for r in records] + other), 0)[1:4] == ["threads", "n_ubatch", "test"]


def test_a_chart_must_be_png_or_svg(tmp_path):
    with pytest.raises(UsageError):
        check_plot(tmp_path / "chart.pdf")


@pytest.mark.parametrize("name", ["chart.png", "chart.svg"])
def test_a_chart_is_drawn(tmp_path, name):
    folder = tmp_path / "charts"
    folder.mkdir()
    plot([ROW, ROW | {"test": "pp16", "n_prompt": 16, "n_gen": 0}], folder / name)
    assert [p.name for p in folder.iterdir()] == [name]
    assert (folder / name).read_bytes()[:4] in (b"\x89PNG", b"<?xm")


def test_nothing_in_a_chart_is_cut_off(tmp_path, monkeypatch):
    inside = []

    def look(figure, *_args, **_options):
        figure.draw_without_rendering()
        texts = [t for axis in figure.axes for t in (*axis.texts, *axis.get_yticklabels())]
        boxes = [t.get_window_extent() for t in texts]
        inside.extend(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    long = {"model_filename": "b.gguf", "model_type": "gemma3 268M Q4_K - Medium", "test": "pp64+tg16 x2 @ d4096"}
    plot(
        [ROW | {"stddev_ts": 20.0, "avg_ts": 12345.0}, ROW | long | {"n_threads": 1, "n_ubatch": 64}],
        tmp_path / "x.png",
    )
    assert len(inside) == 4
    assert all(inside)


def test_without_matplotlib_one_line_says_how_to_get_it(cli, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = cli("bench", "-m", model, "--plot", tmp_path / "chart.png")
    assert result.code == 1
    assert "llmrun[plot]" in result.err
