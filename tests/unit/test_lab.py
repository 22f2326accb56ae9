"""The lab's own logic: what a lab file may say, when events happen, what is written into cgroups, what tc is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from p2ptrain.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from laboratory import quota  # noqa: E402
from laboratory.calibration import Speed  # noqa: E402
from laboratory.network import Line, shaping  # noqa: E402
from laboratory.spec import Event, LabSpec, check_fits, read_lab  # noqa: E402
from laboratory.timeline import Timeline  # noqa: E402

PROFILES = REPOSITORY / "peers"
TWO = """
data = "digits"
[[device]]
name = "a"
share = 0.5
rate_mbit = 50
[[device]]
name = "b"
share = 0.25
"""


def lab(tmp_path: Path, text: str) -> LabSpec:
    path = tmp_path / "lab.toml"
    path.write_text(text, encoding="utf-8")
    return read_lab(path, PROFILES)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts" / "labs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_labs_that_come_along_are_sound(path: Path) -> None:
    spec = read_lab(path, PROFILES)
    check_fits(spec, 2)
    assert spec.devices


def test_shares_of_the_samples_and_the_group_follow(tmp_path: Path) -> None:
    spec = lab(tmp_path, TWO + '[[event]]\nat_s = 3\ndo = "start"\ndevice = "b"\nafter = "start"\n')
    assert [device.shard for device in spec.devices] == ["1/2", "2/2"]
    assert spec.late == {"b"}
    assert spec.name == "lab"
    flops = [device.profile.flops_per_s.value for device in spec.devices]
    assert flops[0] == 2 * flops[1]


def test_profiles_give_share_rate_and_memory(tmp_path: Path) -> None:
    text = 'data = "digits"\n[[device]]\nname = "new"\nprofile = "raspberry-pi-5"\n'
    text += '[[device]]\nname = "old"\nprofile = "raspberry-pi-4"\n'
    new, old = lab(tmp_path, text).devices
    assert new.share == 1.0
    assert old.share == pytest.approx(old.profile.flops_per_s.value / new.profile.flops_per_s.value)
    assert old.rate_mbit == pytest.approx(old.profile.link_bytes_per_s.value * 8e-6)
    assert old.memory_mb == pytest.approx(old.profile.memory_bytes.value / 1e6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "device: expected 1 to 64"),
        ("[[device]]\nname = 'a'\nshare = 1", "data: missing"),
        ("data = 'digits'\n[[device]]\nname = 'a'", r"device\[0\].share: missing"),
        ("data = 'digits'\n[[device]]\nname = 'a'\nshare = 0", r"device\[0\].share: 0 is outside"),
        ("data = 'digits'\n[[device]]\nname = 'a'\nshare = nan", "is not a number"),
        ("data = 'digits'\n[[device]]\nname = 'a b'\nshare = 1", "letters, digits"),
        ("data = 'digits'\n[[device]]\nname = '../x'\nshare = 1", "letters, digits"),
        ("data = 'digits'\n[[device]]\nname = 'a'\nprofile = 'toaster'", "no device profile 'toaster'"),
        ("data = 'digits'\nrate = 1\n[[device]]\nname = 'a'\nshare = 1", "rate: unknown key"),
        (TWO + "[[device]]\nname = 'a'\nshare = 1", "a is there twice"),
        (TWO + "[[event]]\nat_s = 1\ndo = 'explode'\ndevice = 'a'", "'explode' is not one of kill"),
        (TWO + "[[event]]\nat_s = 1\ndo = 'kill'\ndevice = 'c'", "'c' is no device of this lab: a, b"),
        (TWO + "[[event]]\ndo = 'kill'\ndevice = 'a'", r"event\[0\].at_s: missing"),
        (TWO + "[[event]]\nat_s = 1\ndo = 'cut'", "expected lists of names"),
        (TWO + "[[event]]\nat_s = 1\ndo = 'cut'\nsides = [['a'], ['a']]", "there twice"),
        (TWO + "[[event]]\nat_s = 1\ndo = 'slow'\ndevice = 'a'", r"event\[0\].share: missing"),
        (TWO + "[job.data]\nkind = 'image'", "without `data`"),
        (TWO + "[network]\nloss = 1.5", "network.loss: 1.5 is outside"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lab(tmp_path, text)


def test_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    spec = lab(tmp_path, TWO + "[[event]]\nat_s = 1\ndo = 'slow'\ndevice = 'b'\nshare = 0.75\n")
    assert spec.total_share == 1.25
    check_fits(spec, 1.25)
    with pytest.raises(UserError, match=r"1\.25 cores, this machine has 1: scale"):
        check_fits(spec, 1)


# --- events -----------------------------------------------------------------------------------------------------------


class Recorded:
    """Devices that only note what is done to them."""

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []

    def kill(self, device: str) -> None:
        self.done.append(("kill", device))

    def stall(self, device: str) -> None:
        self.done.append(("stall", device))

    def resume(self, device: str) -> None:
        self.done.append(("resume", device))

    def start(self, device: str) -> None:
        self.done.append(("start", device))

    def slow(self, device: str, share: float) -> None:
        self.done.append(("slow", device, share))

    def rate(self, device: str, rate_mbit: float) -> None:
        self.done.append(("rate", device, rate_mbit))

    def cut(self, sides: Sequence[Sequence[str]]) -> None:
        self.done.append(("cut", sides))

    def heal(self) -> None:
        self.done.append(("heal",))


def test_events_happen_once_in_order_and_not_before_their_time() -> None:
    devices, said = Recorded(), []
    events = (
        Event(at_s=9, do="heal"),
        Event(at_s=2, do="kill", device="a", after="start"),
        Event(at_s=4, do="cut", sides=(("a",), ("b",))),
        Event(at_s=4, do="slow", device="b", share=0.1),
    )
    timeline = Timeline(events, devices, said.append)
    now = 100.0

    def carry_out() -> None:
        timeline.carry_out(now, lambda: 1e9 + now, lambda: now)

    carry_out()
    assert devices.done == []
    timeline.begin("start", 100.0)
    now = 102.5
    carry_out()
    carry_out()
    assert devices.done == [("kill", "a")]
    timeline.begin("training", 110.0)
    timeline.begin("training", 500.0)
    now = 113.0
    carry_out()
    assert len(devices.done) == 1
    now = 114.0
    carry_out()
    assert devices.done[1:] == [("cut", (("a",), ("b",))), ("slow", "b", 0.1)]
    assert not timeline.finished
    now = 130.0
    carry_out()
    assert timeline.finished
    first = timeline.log[0]
    assert (first.do, first.at_s, first.time) == ("kill", 2.5, 1e9 + 102.5)
    assert said[-1] == "30.0 s: heal"
    assert "| b" in said[1]


# --- links and shares -------------------------------------------------------------------------------------------------


def test_what_tc_is_told() -> None:
    assert shaping("eth0", 0, None) == []
    (only,) = shaping("eth0", 20, None)
    assert " ".join(only) == "tc qdisc add dev eth0 root handle 1: tbf rate 20mbit burst 10000 latency 100ms"
    first, second = shaping("eth0", 100, Line(delay_ms=5, loss=0.01))
    assert "parent 1:1 netem delay 5ms loss 1%" in " ".join(second)
    assert "burst 50000" in " ".join(first)


V1_MOUNTS = "cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/memory cgroup rw,memory 0 0\n"
V1_OWN = "4:memory:/here\n1:cpu,cpuacct:/\n0::/\n"


def folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def test_version_1(tmp_path: Path) -> None:
    folders(tmp_path, "cg/cpu,cpuacct", "cg/memory/here")
    controllers = quota.find_controllers(V1_MOUNTS, V1_OWN, tmp_path)
    assert controllers.version == 1
    group = quota.DeviceGroup(controllers, "a", 0.1, memory_mb=500)
    cpu, memory = group.folders
    assert cpu.parent == tmp_path / "cg/cpu,cpuacct"
    assert memory.parent == tmp_path / "cg/memory/here"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "10000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "100000"
    assert (memory / "memory.limit_in_bytes").read_text() == "500000000"
    group.set_share(0.5)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "10000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "20000"
    group.correct(1.1)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "11000"
    group.set_share(0.02)  # the corrected share of the longest period
    assert (cpu / "cpu.cfs_quota_us").read_text() == "11000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "500000"


def test_version_2(tmp_path: Path) -> None:
    folders(tmp_path, "cg")
    (tmp_path / "cg" / "cgroup.controllers").write_text("cpuset cpu memory")
    controllers = quota.find_controllers("cgroup2 /cg cgroup2 rw 0 0\n", "0::/user.slice\n", tmp_path)
    assert controllers.version == 2
    group = quota.DeviceGroup(controllers, "a", 1.5, memory_mb=100)
    (folder,) = group.folders
    assert (tmp_path / "cg" / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (folder / "cpu.max").read_text() == "30000 20000"
    assert (folder / "memory.max").read_text() == "100000000"
    assert group.entrances == [folder / "cgroup.procs"]


def test_without_controllers_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cgroup controllers"):
        quota.find_controllers("tmpfs /tmp tmpfs rw 0 0\n", "0::/\n", tmp_path)
    with pytest.raises(UserError, match="no cgroup controllers"):  # mounted, but without the two that matter
        quota.find_controllers("cgroup2 /cg cgroup2 rw 0 0\n", "0::/\n", tmp_path)


def test_only_what_dead_labs_left_is_swept(tmp_path: Path) -> None:
    folders(tmp_path, "cg")
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours, theirs = f"p2ptrain-lab-{dead.pid}-a", f"p2ptrain-lab-{os.getpid()}-a"
    folders(tmp_path, "cg/" + ours, "cg/" + theirs, "cg/something-else")
    controllers = quota.Controllers(2, tmp_path / "cg", tmp_path / "cg")
    assert quota.sweep(controllers) == [ours]
    assert sorted(path.name for path in (tmp_path / "cg").iterdir()) == sorted([theirs, "something-else"])


@pytest.mark.parametrize(("measured", "fine"), [(95.1, True), (104.9, True), (94.9, False), (105.1, False)])
def test_five_percent(measured: float, fine: bool) -> None:
    assert Speed("a", 0.5, 100.0, measured).fine is fine
