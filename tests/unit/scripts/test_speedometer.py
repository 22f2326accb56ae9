"""How fast the machine's cores are, as the lab's speedometer tells it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from lab.speedometer import ENOUGH, Reading, Speedometer, change, readings_of, speed_of  # noqa: E402


def test_a_line_that_is_still_being_written_does_not_count() -> None:
    assert readings_of("1.5 0 0.01\n2.5 1 0.02\n3.5 0 0.0") == [Reading(1.5, 0, 0.01), Reading(2.5, 1, 0.02)]
    assert readings_of("") == []


def test_speed_is_each_core_s_in_the_time_that_is_asked_for() -> None:
    slow = [Reading(float(at), 0, 0.02) for at in range(5)]
    fast = [Reading(10.0 + at, 0, 0.01) for at in range(5)]
    few = [Reading(10.0, 1, 0.01)] * (ENOUGH - 1)
    assert speed_of(slow + fast + few, 0.0, 9.0) == pytest.approx({0: 50.0})
    assert speed_of(slow + fast + few, 10.0, 99.0) == pytest.approx({0: 100.0})
    assert speed_of(slow + fast + few, 20.0, 99.0) == {}


def test_a_change_is_of_the_cores_that_both_know() -> None:
    assert change({0: 50.0, 1: 100.0}, {0: 100.0, 1: 100.0, 2: 7.0}) == pytest.approx(1.5)
    assert change({0: 50.0}, {1: 50.0}) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are chosen by a call of Linux")
def test_a_speedometer_reads_until_it_is_told_to_stop() -> None:
    with Speedometer() as meter:
        deadline = time.monotonic() + 60.0
        while not meter.readings() and time.monotonic() < deadline:
            time.sleep(0.1)
        found = meter.readings()
    assert found and all(0 < reading.seconds < 10 and reading.at <= time.monotonic() for reading in found)
    assert not meter.readings()
