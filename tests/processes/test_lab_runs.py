"""The lab for real: devices in namespaces of their own, with events, on this machine; nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from lab import host, quota  # noqa: E402

lacks = host.missing()
pytestmark = pytest.mark.skipif(bool(lacks), reason=f"the lab can't run here: {'; '.join(lacks)}")

WAIT_S = 500.0
"""On a machine that is many times overloaded."""
LAB = """
data = "digits"
timeout_s = 480
[job.training]
rounds = 20
epochs_per_round = 4.0
[network]
delay_ms = 2.0
[[device]]
name = "big"
share = 0.9
rate_mbit = 100
memory_mb = 1500
[[device]]
name = "small"
share = 0.5
rate_mbit = 20
[[device]]
name = "third"
share = 0.5
rate_mbit = 50
[[event]]
at_s = 0.2
do = "kill"
device = "small"
[[event]]
at_s = 4.0
do = "start"
device = "small"
[[event]]
at_s = 4.5
do = "rate"
device = "third"
rate_mbit = 5
"""


def start(tmp_path: Path, text: str, *options: str) -> subprocess.Popen[str]:
    path = tmp_path / "lab.toml"
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "scripts.lab", "run", str(path), "--out", str(tmp_path / "out")]
    command += ["--no-calibrate", *options]  # speeds are for quiet machines
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=SCRIPTS.parent)


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def peers_of(pid: int) -> list[int]:
    """Processes in the devices of the lab with this process id."""
    controllers = quota.find_controllers()
    found = []
    for folder in controllers.cpu.glob(f"{quota.NAME}-{pid}-*"):
        found += [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    return found


def left_over(pid: int) -> list[str]:
    controllers = quota.find_controllers()
    return [f.name for parent in (controllers.cpu, controllers.memory) for f in parent.glob(f"{quota.NAME}-{pid}-*")]


def test_a_lab_with_a_kill_and_a_slow_link(tmp_path: Path) -> None:
    before = links()
    lab = start(tmp_path, LAB)
    said, _ = lab.communicate(timeout=WAIT_S)
    assert lab.returncode == 0, said
    assert links() == before
    assert left_over(lab.pid) == []
    (result,) = json.loads((tmp_path / "out" / "lab.json").read_text())["runs"]
    assert [event["do"] for event in result["events"]] == ["kill", "start", "rate"]
    times = [event["time"] for event in result["events"]]
    assert times == sorted(times)
    assert result["result"]["assembled_accuracy"] > 0.9
    parts = result["plans"][-1]["parts"]
    assert sorted(c for part in parts for c in part["classes"]) == list(range(10))
    assert {device["name"] for device in result["devices"]} == {"big", "small", "third"}
    assert all(device["peak_memory_bytes"] > 50e6 for device in result["devices"])
    noticed = [json.loads(line) for line in (tmp_path / "out" / "big.journal.jsonl").read_text().splitlines()]
    gone = [line for line in noticed if line["kind"] == "failed" and line.get("name") == "small"]
    assert gone and gone[0]["time"] > times[0]
    assert (tmp_path / "out" / "global.safetensors").stat().st_size > 10_000


TIMED = """
data = "digits"
timeout_s = 480
train_s = 3
[job]
mode = "replicas"
[job.training]
rounds = 100000
schedule = "constant"
[[device]]
name = "big"
share = 1.0
[[device]]
name = "small"
share = 0.8
"""


def test_when_the_time_is_up_what_has_been_saved_is_harvested(tmp_path: Path) -> None:
    lab = start(tmp_path, TIMED, "--points", "3")
    said, _ = lab.communicate(timeout=WAIT_S)
    assert lab.returncode == 0, said
    assert left_over(lab.pid) == []
    (run,) = json.loads((tmp_path / "out" / "lab.json").read_text())["runs"]
    assert run["trained_s"] - run["training_s"] >= 3
    assert run["accuracies"][-1]["accuracy"] == run["result"]["assembled_accuracy"]
    assert run["accuracies"][-1]["at_s"] == pytest.approx(run["trained_s"], abs=0.01)
    journal = [json.loads(line) for line in (tmp_path / "out" / "big.journal.jsonl").read_text().splitlines()]
    assert 1 <= sum(line["kind"] == "round" for line in journal) < 100000


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_that_is_ended_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    before = links()
    lab = start(tmp_path, LAB)
    try:
        deadline = time.monotonic() + WAIT_S
        while len(peers_of(lab.pid)) < 3:
            assert lab.poll() is None, lab.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        peers = peers_of(lab.pid)
        lab.send_signal(how)
        lab.wait(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while any(Path(f"/proc/{pid}/exe").exists() for pid in peers):
            assert time.monotonic() < deadline, "peers outlive their lab"
            time.sleep(0.1)
    finally:
        lab.kill()
        lab.communicate()
    assert links() == before
    while left_over(lab.pid):  # the peers' own processes end a moment after them
        assert time.monotonic() < deadline, "processes outlive their lab"
        quota.sweep(quota.find_controllers())
        time.sleep(0.1)
    assert lab.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)


def test_more_devices_than_the_machine_has_room_for(tmp_path: Path) -> None:
    lab = start(tmp_path, LAB.replace("0.9", str(float(os.cpu_count() or 1) + 1)))
    said, _ = lab.communicate(timeout=WAIT_S)
    assert lab.returncode == 2
    assert "cores, this machine has" in said
