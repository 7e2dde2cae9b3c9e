"""One row as it is written: llama-bench's fields first, in its order, then llmrun's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.measure.bench_row import Measurement
    from ...runtime.measure.traffic import Traffic
    from .grid import Setting

# llama-bench.cpp, test::get_fields and get_field_type
LLAMA_FIELDS: dict[str, type] = {
    "build_commit": str, "build_number": int, "cpu_info": str, "gpu_info": str, "backends": str,
    "model_filename": str, "model_type": str, "model_size": int, "model_n_params": int, "n_batch": int,
    "n_ubatch": int, "n_threads": int, "cpu_mask": str, "cpu_strict": bool, "poll": int,
    "type_k": str, "type_v": str, "n_gpu_layers": int, "n_cpu_moe": int, "split_mode": str,
    "main_gpu": int, "no_kv_offload": bool, "flash_attn": int, "devices": str, "tensor_split": str,
    "tensor_buft_overrides": str, "load_mode": str, "lazy_mode": str, "embeddings": bool, "no_op_offload": int,
    "no_host": bool, "repack": bool, "fit_target": int, "fit_min_ctx": int, "n_prompt": int,
    "n_gen": int, "n_depth": int, "test_time": str, "avg_ns": int, "stddev_ns": int,
    "avg_ts": float, "stddev_ts": float,
}  # fmt: skip
OWN_FIELDS: dict[str, type] = {
    "engine": str, "isa": str, "test": str, "n_seq": int, "is_shared": bool, "load_ns": int, "start_ns": int,
    "ttft_ns": int, "itl_p50_ns": int, "itl_p90_ns": int, "itl_p99_ns": int, "depth_ns": int, "peak_bytes": int,
    "test_bytes": int, "test_ops": int, "read_bytes_s": float, "bandwidth_bytes_s": float, "bandwidth_pct": float,
    "int8_ops_s": float, "int8_peak_ops_s": float, "int8_pct": float, "joules_per_token": float,
    "cost_per_mtok": float, "steal_pct": float, "major_faults": int, "throttles": int,
}  # fmt: skip
# What llmrun always does, in llama-bench's words: no accelerator, online softmax, weights packed at load.
FIXED: dict[str, Any] = {
    "gpu_info": "", "backends": "CPU", "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "n_gpu_layers": 0,
    "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": False, "flash_attn": 1, "devices": "auto",
    "tensor_split": "0.00", "tensor_buft_overrides": "none", "lazy_mode": "auto", "embeddings": False,
    "no_op_offload": 0, "no_host": False, "repack": True, "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip
# What tells rows of the same test apart besides the model, and how columns are headed.
SETTINGS = {
    "n_threads": "threads", "n_batch": "n_batch", "n_ubatch": "n_ubatch", "type_k": "type_k", "load_mode": "lm",
}  # fmt: skip
_SIZES = {"S": "Small", "M": "Medium", "L": "Large"}


def varying(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the settings that are not the same in all rows."""
    rows = list(records)
    return [name for name in SETTINGS if len({row.get(name) for row in rows}) > 1]


def quant_description(name: str) -> str:
    """Return a mixture's name as llama-bench writes it: ``Q4_K - Medium``."""
    kind, _, size = name.rpartition("_")
    if kind.endswith("_K") and size in _SIZES:
        return f"{kind} - {_SIZES[size]}"
    return f"all {name}" if name == "F32" else name


def record_of(
    setting: Setting,
    engine: Engine,
    traffic: Traffic,
    measured: Measurement,
    machine: dict[str, Any],
    own: dict[str, Any],
) -> dict[str, Any]:
    """Return one row.

    Args:
        setting: how the model was opened.
        engine: the opened model.
        traffic: its bytes and operations.
        measured: the repetitions.
        machine: ``build_commit``, ``build_number``, ``cpu_info``, ``test_time``.
        own: those of llmrun's fields that do not follow from ``measured`` alone.
    """
    from ..render.text import count

    test = measured.test
    values = {
        **FIXED,
        **machine,
        "model_filename": setting.model,
        "model_type": f"{traffic.architecture} {count(traffic.n_params)} {quant_description(traffic.quant)}",
        "model_size": traffic.tensor_bytes,
        "model_n_params": traffic.n_params,
        "n_batch": setting.n_batch,
        "n_ubatch": setting.n_ubatch,
        "n_threads": setting.n_threads,
        "type_k": setting.type_k,
        "type_v": setting.type_k,
        "load_mode": "mmap" if setting.use_mmap else "none",
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "avg_ns": measured.avg_ns,
        "stddev_ns": measured.stddev_ns,
        "avg_ts": round(measured.avg_ts, 6),
        "stddev_ts": round(measured.stddev_ts, 6),
        "engine": "llmrun",
        "isa": engine.isa,
        "test": test.name,
        "n_seq": test.n_seq,
        "is_shared": test.is_shared,
        "ttft_ns": measured.first_token_ns,
        "itl_p50_ns": measured.step_quantile(0.5),
        "itl_p90_ns": measured.step_quantile(0.9),
        "itl_p99_ns": measured.step_quantile(0.99),
        "depth_ns": measured.depth_ns,
        "peak_bytes": measured.peak_bytes,
        "joules_per_token": measured.joules_per_token,
        "steal_pct": None if measured.steal_share is None else round(100 * measured.steal_share, 2),
        "major_faults": measured.n_major_fault,
        "throttles": measured.n_throttle,
        **own,
    }
    ordered = {name: values.get(name) for name in (*LLAMA_FIELDS, *OWN_FIELDS)}
    return {**ordered, "samples_ns": measured.samples_ns, "samples_ts": [round(v, 6) for v in measured.samples_ts]}
