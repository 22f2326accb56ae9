"""What a device measures of itself, and what it does not know."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.device_figures import SENSORS_S, DeviceFigures


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    told = SimpleNamespace(warm=[45.0, 61.0, 0.0, 4000.0], percent=40.0, asked=0)

    def temperatures() -> dict[str, list[SimpleNamespace]]:
        told.asked += 1
        return {"chip": [SimpleNamespace(current=each) for each in told.warm]}

    monkeypatch.setattr(psutil, "sensors_temperatures", temperatures, raising=False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(percent=told.percent), raising=False)
    return told


def test_the_trainers_share_is_of_the_threads_that_it_may_use() -> None:
    device = DeviceFigures(threads=2)
    assert "trainer_cpu" not in device.read(10.0, 100.0), "there is nothing to compare with"
    assert device.read(11.0, 101.0)["trainer_cpu"] == 0.5
    assert device.read(15.0, 102.0)["trainer_cpu"] == 1.0, "clocks are coarse"
    assert "trainer_cpu" not in device.read(0.1, 103.0), "another trainer"
    assert "trainer_cpu" not in device.read(None, 104.0) and "node_cpu" in device.read(None, 105.0)


def test_a_stage_computes_until_there_is_another_plan() -> None:
    device = DeviceFigures(threads=1)
    assert "computes" not in device.read(None, 0.0)
    device.heard(Note("stage", (("step", 2), ("busy", 0.01), ("slowdown", 1.0))))
    assert "computes" not in device.read(None, 0.5), "it waited for the others to begin"
    device.heard(Note("stage", (("step", 19), ("busy", 0.5), ("batch_s", 0.25), ("sends_bytes_per_s", 9e3))))
    device.heard(Note("round", (("round", 3),)))
    found = device.read(None, 1.5)
    assert (found["computes"], found["batch_s"], found["sends_bytes_per_s"]) == (0.5, 0.25, 9e3)
    device.heard(Note("plan-adopted"))
    assert "computes" not in device.read(None, 2.0)


def test_sensors_are_asked_seldom_and_nonsense_is_left_out(system: SimpleNamespace) -> None:
    device = DeviceFigures(threads=1)
    figures = device.read(None, 0.0)
    assert figures["temperature_c"] == 61.0 and figures["battery"] == 0.4
    system.warm = [70.0]
    assert device.read(None, SENSORS_S / 2)["temperature_c"] == 61.0 and system.asked == 1
    assert device.read(None, SENSORS_S)["temperature_c"] == 70.0


def test_a_system_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise FileNotFoundError("/sys/class/hwmon")

    monkeypatch.setattr(psutil, "sensors_temperatures", nothing, raising=False)
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert set(DeviceFigures(threads=1).read(None, 0.0)) <= {"node_cpu"}
