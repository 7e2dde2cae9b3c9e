"""llmrun's side of ``llmrun bench --vs``: the same lines as ``peer_llama_cpp.py`` takes and gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ...formats.errors import CapacityError, LlmrunError
from .bench_row import SMALLER, BenchTest
from .peer_llama_cpp import end_with_parent, open_answers, sha256_of
from .runner import Runner


def main() -> None:
    """Answer settings, then tests, line by line."""
    from ... import __version__
    from ..engine import Engine

    end_with_parent()
    answer = open_answers()
    settings = json.loads(sys.stdin.readline())
    try:
        n_ubatch = min(settings["n_batch"], settings["n_ubatch"])
        path = Path(settings["path"])
        with Engine.open(
            path,
            n_ctx=settings["n_ctx"],
            n_threads=settings["n_threads"],
            n_ubatch=n_ubatch,
            kv_type=settings["type_k"],
        ) as engine:
            runner = Runner(engine, n_batch=settings["n_batch"])
            about = {"engine": "llmrun", "version": f"llmrun {__version__}", "system_info": engine.isa}
            answer(about | {"sha256": sha256_of(settings["path"])})
            for line in sys.stdin:
                sample = runner.sample(BenchTest(**json.loads(line)))
                answer({"total_ns": sample.total_ns, "step_ns": list(sample.step_ns)})
    except CapacityError as error:
        answer({"error": f"{error.problem}; {SMALLER}"})
    except LlmrunError as error:
        answer({"error": str(error)})
