"""Energy counters, from folders like those of /sys; and the cost of a million tokens."""

import pytest

from llmrun.runtime.measure import energy
from llmrun.runtime.measure.energy import Prices, battery_watts, mean_watts


def domain(folder, name, microjoules, largest=10_000_000):
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", largest)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    counters = [domain(tmp_path / f"intel-rapl:{i}", f"package-{i}", 1_000_000) for i in range(2)]
    domain(tmp_path / "intel-rapl:0:0", "core", 500_000)
    meter, what = energy._find_rapl(tmp_path)
    assert what == "RAPL, 2 package(s)"
    meter.start()
    counters[0].write_text("1500000")
    counters[1].write_text("3000000")
    assert meter.stop() == 2.5


def test_the_whole_platform_is_preferred(tmp_path):
    domain(tmp_path / "intel-rapl:0", "package-0", 0)
    counter = domain(tmp_path / "intel-rapl:1", "psys", 0)
    meter, what = energy._find_rapl(tmp_path)
    assert "whole platform" in what
    meter.start()
    counter.write_text("4000000")
    assert meter.stop() == 4


def test_a_counter_that_comes_round(tmp_path):
    counter = domain(tmp_path / "intel-rapl:0", "package-0", 9_000_000)
    meter, _ = energy._find_rapl(tmp_path)
    meter.start()
    counter.write_text("500000")
    assert meter.stop() == 1.5


def test_a_counter_that_goes_away_gives_no_figure(tmp_path):
    counter = domain(tmp_path / "intel-rapl:0", "package-0", 0)
    meter, _ = energy._find_rapl(tmp_path)
    meter.start()
    counter.unlink()
    assert meter.stop() is None


def test_without_counters_there_is_no_meter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy.sys, "platform", "linux")
    for name in ("_find_rapl", "_find_battery"):
        find = getattr(energy, name)
        monkeypatch.setattr(energy, name, lambda find=find: find(tmp_path))
    assert energy.find_meter() == (None, "this machine exposes no energy counter")


def battery(folder, **files):
    folder.mkdir()
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def test_a_battery_tells_its_power_only_while_it_is_drained(tmp_path):
    assert battery_watts(battery(tmp_path / "BAT0", status="Discharging", power_now=12_500_000)) == 12.5
    assert battery_watts(battery(tmp_path / "BAT1", status="Charging", power_now=12_500_000)) is None
    by_current = battery(tmp_path / "BAT2", status="Discharging", current_now=2_000_000, voltage_now=11_000_000)
    assert battery_watts(by_current) == 22
    assert battery_watts(battery(tmp_path / "BAT3", status="Discharging")) is None


def test_a_batterys_energy_is_power_times_time(tmp_path, monkeypatch):
    meter = energy.BatteryMeter(battery(tmp_path / "BAT0", status="Discharging", power_now=10_000_000))
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
    meter.start()
    assert meter.stop() == pytest.approx(30)


def test_what_powermetrics_writes():
    text = "CPU Power: 4000 mW\nGPU Power: 9 mW\nCombined Power (CPU + GPU + ANE): 4009 mW\n\nCPU Power: 6000 mW\n"
    assert mean_watts(text) == 5
    assert mean_watts("no such line") is None


def test_the_cost_of_a_million_tokens():
    assert Prices().per_million(joules_per_token=1, tokens_s=10) is None
    assert Prices(per_kwh=0.36).per_million(joules_per_token=1, tokens_s=10) == pytest.approx(0.1)
    assert Prices(per_kwh=0.36).per_million(joules_per_token=None, tokens_s=10) is None
    year_s = 365.25 * 86400
    both = Prices(per_kwh=0.36, hardware=year_s, lifetime_years=1)  # the machine costs 1 a second
    assert both.per_million(joules_per_token=1, tokens_s=10) == pytest.approx(0.1 + 1e5)
