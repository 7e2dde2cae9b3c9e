"""Runs a plan and gives its rows one by one."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...formats.errors import CapacityError
from ..generation import open_engine
from ..imports import import_engine
from ..model_ref import resolve
from ..options import LoadOptions
from ..render.progress import ProgressBar
from ..render.text import escaped
from .grid import Setting
from .options import MachineOptions, OutputOptions, TestOptions
from .plan import Plan
from .record import record_of

if TYPE_CHECKING:
    from ...runtime.engine import Engine
    from ...runtime.measure.bench_row import BenchTest, Measurement
    from ...runtime.measure.read_probe import ReadProbe
    from ...runtime.measure.roofline import Roofline
    from ...runtime.measure.runner import Runner
    from ...runtime.measure.traffic import Traffic


REPETITIONS = 5


class Bench:
    """One run of ``llmrun bench``."""

    def __init__(self, plan: Plan, options: TestOptions, machine: MachineOptions, output: OutputOptions) -> None:
        import_engine()
        from ... import __version__
        from ...runtime.measure.energy import Prices, find_meter
        from ...runtime.measure.machine import cpu_name

        self._plan, self._options, self._says = plan, options, output.progress
        self._n_start, self._has_roofline = machine.starts, not machine.no_roofline
        self._prices = Prices(
            per_kwh=machine.price_kwh, hardware=machine.hardware_cost, lifetime_years=machine.lifetime
        )
        self._meter, self.energy = find_meter()
        self._machine = {"build_commit": __version__, "build_number": 0, "cpu_info": cpu_name()}
        self._n_done, self._n_test = 0, len(plan.settings) * len(plan.tests)
        self._start_ns: dict[Path, int | None] = {}
        self._rooflines: dict[int, Roofline | None] = {}

    def records(self) -> Iterator[dict[str, Any]]:
        """Run every test and yield its row.

        Raises:
            LlmrunError: whatever is wrong with a model, or does not fit into memory.
        """
        for setting in self._plan.settings:
            yield from self._run_setting(setting, resolve(setting.model))

    def _run_setting(self, setting: Setting, path: Path) -> Iterator[dict[str, Any]]:
        from ...runtime.measure.read_probe import ReadProbe
        from ...runtime.measure.runner import Runner
        from ...runtime.measure.traffic import read_traffic

        traffic = read_traffic(path, setting.type_k)
        if path not in self._start_ns:
            self._start_ns[path] = self._time_starts(path, setting)
        roofline = self._roofline(setting.n_threads)
        engine, load_ns = self._open(path, setting)
        if engine.n_compiled:  # which is no part of loading: the next start finds the objects
            engine.close()
            engine, load_ns = self._open(path, setting)
        own: dict[str, Any] = {"load_ns": load_ns, "start_ns": self._start_ns[path]}
        if roofline is not None:
            own |= {"bandwidth_bytes_s": roofline.read_bytes_s, "int8_peak_ops_s": round(roofline.int8_ops_s)}
        for notice in engine.notices:
            print(escaped(notice), file=sys.stderr)
        try:
            runner = Runner(engine, n_batch=setting.n_batch)
            with nullcontext() if roofline is None else ReadProbe(setting.n_threads) as probe:
                for tests in in_turn(self._plan.tests):
                    for measured in self._run_tests(runner, tests, probe):
                        yield self._record(setting, engine, traffic, measured, own)
        finally:
            engine.close()
            del engine
            gc.collect()  # the next model needs the memory

    def _open(self, path: Path, setting: Setting) -> tuple[Engine, int]:
        """Return the opened model and the nanoseconds that opening took."""
        from ...runtime.measure.bench_row import SMALLER
        from ...runtime.measure.machine import forget_peak

        forget_peak()
        start = time.perf_counter_ns()
        try:
            engine = open_engine(path, load_options(setting), n_ctx=max(test.n_slot for test in self._plan.tests))
        except CapacityError as error:
            raise CapacityError(error.problem, SMALLER) from None
        return engine, time.perf_counter_ns() - start

    def _run_tests(self, runner: Runner, tests: list[BenchTest], probe: ReadProbe | None) -> list[Measurement]:
        """Run tests in rounds, one repetition of each, and see between them what the memory gives meanwhile."""
        from ...runtime.measure.bench_row import Measurement
        from ...runtime.measure.machine import Counters

        measured = [Measurement(test=test) for test in tests]
        n, n_before = self._options.repetitions or REPETITIONS, self._n_done
        self._n_done += len(tests)
        with ProgressBar(f"benchmark {n_before + 1}/{self._n_test}: {tests[0].name}") as bar:
            before = Counters.now()
            for i in range(n):
                for j, row in enumerate(measured):
                    where = f"benchmark {n_before + j + 1}/{self._n_test}"
                    if i == 0:
                        self._begin(runner, row.test, where)
                    self._say(f"{where}: run {i + 1}/{n}")
                    bar(f"{where}: {row.test.name}", i * len(tests) + j, n * len(tests))
                    runner.prepare(row.test)
                    self._repeat(runner, row, probe)
            disturbance = Counters.now().since(before)
        for row in measured:
            row.steal_share = disturbance.steal_share
            row.n_major_fault, row.n_throttle = disturbance.n_major_fault, disturbance.n_throttle
        return measured

    def _begin(self, runner: Runner, test: BenchTest, where: str) -> None:
        self._say(f"{where}: starting {test.name}")
        time.sleep(self._options.delay)
        if not self._options.no_warmup:
            self._say(f"{where}: warm-up")
            runner.warm_up(test)

    def _repeat(self, runner: Runner, row: Measurement, probe: ReadProbe | None) -> None:
        """Add a repetition to a prepared test's row, with the bandwidth before and after it, and its energy."""
        from ...runtime.measure.machine import peak_bytes

        rates = [probe.bytes_s()] if probe else []
        if self._meter is not None:
            self._meter.start()
        row.samples.append(runner.sample(row.test))
        joules = self._meter.stop() if self._meter is not None else None
        if len(row.samples) == 1:
            row.joules, row.depth_ns, row.peak_bytes = joules, runner.depth_ns, peak_bytes()
        elif row.joules is not None:
            row.joules = None if joules is None else row.joules + joules
        rates += [probe.bytes_s()] if probe else []
        row.read_rates += [rate for rate in rates if rate]

    def _record(
        self, setting: Setting, engine: Engine, traffic: Traffic, measured: Measurement, own: dict[str, Any]
    ) -> dict[str, Any]:
        from ...runtime.measure.traffic import cut_prompt

        test = measured.test
        n_bytes = traffic.test_bytes(test, cut_prompt(test.n_prompt, setting.n_batch, setting.n_ubatch))
        n_op, seconds = traffic.test_ops(test), max(1, measured.avg_ns) / 1e9
        own = own | {"test_bytes": n_bytes, "test_ops": n_op}
        own |= {"read_bytes_s": round(n_bytes / seconds), "int8_ops_s": round(n_op / seconds)}
        if "bandwidth_bytes_s" in own:
            own["bandwidth_bytes_s"] = round(measured.bandwidth or own["bandwidth_bytes_s"])
            own["bandwidth_pct"] = round(100 * own["read_bytes_s"] / own["bandwidth_bytes_s"], 2)
            own["int8_pct"] = round(100 * own["int8_ops_s"] / own["int8_peak_ops_s"], 2)
        own["cost_per_mtok"] = self._prices.per_million(
            joules_per_token=measured.joules_per_token, tokens_s=measured.avg_ts
        )
        machine = self._machine | {"test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return record_of(setting, engine, traffic, measured, machine, own)

    def _roofline(self, n_threads: int) -> Roofline | None:
        from ...runtime.measure.roofline import measure

        if not self._has_roofline:
            return None
        if n_threads not in self._rooflines:
            self._say(f"measuring read bandwidth and int8 peak of {n_threads} threads")
            self._rooflines[n_threads] = measure(n_threads)
            if self._rooflines[n_threads] is None:
                print("the roofline could not be measured", file=sys.stderr)
        return self._rooflines[n_threads]

    def _time_starts(self, path: Path, setting: Setting) -> int | None:
        from ...runtime.measure.starts import time_starts

        if not self._n_start:
            return None
        self._say(f"starting llmrun {self._n_start + 1} times")
        with ProgressBar("starting llmrun") as bar:
            return time_starts(path, setting.n_threads, self._n_start, lambda i, n: bar("starting llmrun", i, n))

    def _say(self, text: str) -> None:
        if self._says:
            print(f"llmrun bench: {text}", file=sys.stderr, flush=True)


def in_turn(tests: Iterable[BenchTest]) -> Iterator[list[BenchTest]]:
    """Yield neighbours that differ only in their number of sequences: their ratio is what matters."""
    for _, group in itertools.groupby(tests, lambda t: (t.n_prompt, t.n_gen, t.n_depth, t.is_shared)):
        yield list(group)


def load_options(setting: Setting) -> LoadOptions:
    """Return how a setting's model is opened."""
    return LoadOptions(
        threads=setting.n_threads,
        ubatch_size=min(setting.n_batch, setting.n_ubatch),
        mmap=setting.use_mmap,
        cache_type_k=setting.type_k,
    )
