"""The lab's own logic: what a lab file may say, when events happen, what is written into cgroups, what tc is told."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from p2ptrain.errors import UserError
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.models import global_model
from p2ptrain.learning.profiling import allocator, block_times
from p2ptrain.modes.pipeline import worker
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.net.keys import load_or_make_identity
from p2ptrain.runtime.node.peer_node import BLOCK_TIMES

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from lab import calibration, quota, rehearsal, session  # noqa: E402
from lab.calibration import Speed, Turn  # noqa: E402
from lab.camera import Camera  # noqa: E402
from lab.devices import LabDevices  # noqa: E402
from lab.growth import Growth, Use  # noqa: E402
from lab.hardships import Night  # noqa: E402
from lab.jobs import job_of  # noqa: E402
from lab.network import Line, shaping  # noqa: E402
from lab.placement import placed  # noqa: E402
from lab.report import figures, plans_line, to_plain  # noqa: E402
from lab.spec import Event, LabSpec, check_fits, device_of, read_lab  # noqa: E402
from lab.timeline import Timeline  # noqa: E402

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


PIPELINE = PipelineBody("c" * 64, SimpleNamespace(), (), (), 0, 10)  # type: ignore[arg-type]


def lab(tmp_path: Path, text: str) -> LabSpec:
    path = tmp_path / "lab.toml"
    path.write_text(text, encoding="utf-8")
    return read_lab(path, PROFILES)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "scripts" / "lab" / "files").glob("*.toml")), ids=lambda p: p.stem
)
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
        ("train_s = -1" + TWO, "train_s: -1 is outside"),
        ("train_s = 'long'" + TWO, "train_s: 'long' is not a number"),
        (
            "train_s = 30" + TWO + "[[event]]\nat_s = 30\ndo = 'kill'\ndevice = 'a'",
            r"event\[0\].at_s: 30 is not before the end of training, train_s = 30",
        ),
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


def test_training_ends_when_the_job_does_or_after_a_time(tmp_path: Path) -> None:
    assert lab(tmp_path, TWO).train_s == 0
    event = "[[event]]\nat_s = 29\ndo = 'kill'\ndevice = 'a'\n"
    event += "[[event]]\nat_s = 60\ndo = 'start'\ndevice = 'a'\nafter = 'start'\n"
    spec = lab(tmp_path, "train_s = 30" + TWO + event)
    assert spec.train_s == 30
    assert [event.at_s for event in spec.events] == [29, 60]


@pytest.mark.parametrize(
    ("share", "num_cores", "num_threads"), [(0.1, 2, 1), (1.0, 2, 1), (1.5, 2, 2), (3.0, 2, 2), (1.5, 0.5, 1)]
)
def test_a_device_trains_with_as_many_threads_as_it_and_the_machine_have_cores(
    share: float, num_cores: float, num_threads: int
) -> None:
    assert device_of("a", share).num_threads(num_cores) == num_threads


def test_the_threads_of_a_profile_are_its_cores(tmp_path: Path) -> None:
    (device,) = lab(
        tmp_path, 'data = "digits"\n[[device]]\nname = "a"\nprofile = "raspberry-pi-4"\nshare = 0.3'
    ).devices
    assert [device.num_threads(cores) for cores in (1, 2, 64)] == [1, 2, 4]


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


def test_what_links_are_told() -> None:
    assert [" ".join(each) for each in shaping("eth0", 0, None)] == ["ip link set dev eth0 gso_max_size 65536"]
    limit, segment = (" ".join(each) for each in shaping("eth0", 20, None))
    assert limit == "tc qdisc add dev eth0 root handle 1: tbf rate 20mbit burst 10000 latency 100ms"
    assert segment == "ip link set dev eth0 gso_max_size 8486", "a larger one the bucket would cut into frames"
    first, second, _ = shaping("eth0", 100, Line(delay_ms=5, loss=0.01))
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
    assert (cpu / "cpu.shares").read_text() == "65536"
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
    assert (folder / "cpu.weight").read_text() == "10000"
    assert (folder / "memory.max").read_text() == "100000000"
    assert group.entrances == [folder / "cgroup.procs"]


def test_memory_in_use_is_told_without_copies_of_files(tmp_path: Path) -> None:
    folders(tmp_path, "cg/cpu,cpuacct", "cg/memory/here", "two")
    first = quota.DeviceGroup(quota.find_controllers(V1_MOUNTS, V1_OWN, tmp_path), "a", 0.1)
    assert first.kept_bytes() == 0
    (first.folders[-1] / "memory.stat").write_text("cache 900\nrss 10\ntotal_cache 900\ntotal_rss 30\n")
    assert first.kept_bytes() == 30
    second = quota.DeviceGroup(quota.Controllers(2, tmp_path / "two", tmp_path / "two"), "b", 0.1)
    (second.folders[-1] / "memory.stat").write_text("anon 40\nfile 900\n")
    assert second.kept_bytes() == 40


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


# --- a run ------------------------------------------------------------------------------------------------------------


def test_whom_a_pipeline_leaves_out_is_not_waited_for() -> None:
    records = [SimpleNamespace(name=name, peer=name, plan=plan) for name, plan in (("a", "p"), ("b", "p"), ("c", ""))]
    parts = {"a": object()}
    plan = SimpleNamespace(hash="p", body=PIPELINE, part_of=parts.get)
    status = SimpleNamespace(plan=plan, records=records)
    assert session._standing_by(status) == {"b"}  # type: ignore[arg-type]
    plan.body = None
    assert session._standing_by(status) == set()  # type: ignore[arg-type]


def test_the_job_s_table_may_shape_the_samples(tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("to be or not to be " * 100, encoding="utf-8")
    tables = {"model": {"name": "bert_small"}, "mode": "replicas", "input_shape": [1, 1, 16]}
    job = job_of(LabSpec("words", f"text:{text}", tables, (device_of("a", 1.0),)))
    assert job.data.input_shape == (1, 1, 16)
    x, y = calibration.made_up_batch(job)
    assert x.shape == (calibration.BATCH_SIZE, 1, 1, 16)
    assert y.shape == (calibration.BATCH_SIZE, 16)
    pictures = job_of(LabSpec("digits", "digits", {}, (device_of("a", 1.0),)))
    x, y = calibration.made_up_batch(pictures)
    assert x.shape == (calibration.BATCH_SIZE, 1, 8, 8)
    assert y.shape == (calibration.BATCH_SIZE,)


# --- a rehearsal ------------------------------------------------------------------------------------------------------


def test_what_was_rehearsed_is_what_a_peer_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = tuple(device_of(name, 0.5, 10.0) for name in "ab")
    job = job_of(LabSpec("lab", "digits", {"model": {"name": "lenet", "width": 0.2}, "mode": "pipeline"}, devices))
    monkeypatch.setattr(sys, "stdin", io.StringIO(job.to_json() + "\nmeasure\n"))
    monkeypatch.setattr(allocator, "keep_for_training", lambda: True)
    rehearsal.main(tmp_path / "times.json")
    with torch.device("meta"):
        chain = Chain(global_model(job, allow_user_code=False), job.data.input_shape)
    monkeypatch.setattr(block_times, "_measure", lambda *_: pytest.fail("measured again"))
    _, times = worker.profile_job(chain, job, "cpu", tmp_path / "times.json")
    assert len(times.forward_s[0]) == len(chain.blocks) and times.update_s_per_byte > 0


def test_devices_hurry_until_they_are_to_keep_to_their_shares(tmp_path: Path) -> None:
    described = (device_of("small", 0.1, 10.0), device_of("large", 1.5, 10.0))
    shares: dict[str, list[float]] = {device.name: [] for device in described}
    groups: Any = {name: SimpleNamespace(set_share=told.append) for name, told in shares.items()}
    nothing: Any = None
    devices = LabDevices(LabSpec("lab", "digits", {}, described), nothing, tmp_path, nothing, groups, nothing)
    devices.give_identities()
    devices.hurry({"small": b"times"})
    assert shares == {"small": [1.0], "large": [1.5]}
    assert (tmp_path / "small" / BLOCK_TIMES).read_bytes() == b"times"
    assert not (tmp_path / "large" / BLOCK_TIMES).exists()
    devices.keep_to_shares()
    assert shares == {"small": [1.0, 0.1], "large": [1.5, 1.5]}


def test_the_ids_of_a_lab_s_peers_rise_in_the_order_of_its_devices(tmp_path: Path) -> None:
    devices = tuple(device_of(name, 0.1, 10.0) for name in "defabc")
    nothing: Any = None
    LabDevices(LabSpec("lab", "digits", {}, devices), nothing, tmp_path, nothing, nothing, nothing).give_identities()
    ids = [load_or_make_identity(tmp_path / device.name).peer for device in devices]
    assert len(set(ids)) == len(devices) and ids == sorted(ids)
    assert {path.name for path in tmp_path.iterdir()} == set("defabc")


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0.0, 0.2, 0.33])
@pytest.mark.parametrize("power", [0.6, 1.0, 1.9])
def test_a_correction_finds_the_speed_though_it_overshoots_at_first(lost: float, power: float) -> None:
    """A device does ``(1 - lost) * correction ** power`` of its nominal speed."""
    tried = [Speed("board", 0.1, 100.0, 100.0 * (1 - lost))]
    while not tried[-1].fine:
        assert len(tried) < calibration.ATTEMPTS, tried
        correction = calibration.next_correction(tried)
        tried.append(Speed("board", 0.1, 100.0, 100.0 * (1 - lost) * correction**power, correction))
    assert 0.95 <= tried[-1].measured / 100.0 <= 1.05


def test_measurements_with_about_the_same_quota_count_together() -> None:
    tried = [Speed("board", 0.1, 100.0, 80.0), Speed("board", 0.1, 200.0, 214.0, 1.25)]
    assert calibration.pooled(tried) == tried[-1] and not tried[-1].fine
    tried.append(Speed("board", 0.1, 100.0, 94.0, 1.20))
    assert calibration.pooled(tried) == tried[-1], "of the first one the quota was another"
    tried.append(Speed("board", 0.1, 100.0, 93.0, 1.25))
    together = calibration.pooled(tried)
    assert together.fine and together.correction == 1.25 and not tried[-1].fine
    assert together.measured == pytest.approx(94.0 * 1.25 / 1.20), "the median of 107, 98 and 93"


def test_a_correction_is_not_led_astray_by_one_disturbed_measurement() -> None:
    """The device needs 1.25 times the quota; one measurement in three is a sixth off."""
    tried = [Speed("board", 0.1, 100.0, 80.0)]
    for number in range(1, calibration.ATTEMPTS):
        correction = calibration.next_correction(tried)
        disturbed = (1.0, 0.83, 1.17)[number % 3]
        tried.append(Speed("board", 0.1, 100.0, 80.0 * correction * disturbed, correction))
    assert all(1.2 < speed.correction < 1.3 for speed in tried[3:])


class Machine:
    """A worker and its group on an imagined machine: one thread trains 100 samples in a second of CPU time."""

    pid = 1

    def __init__(self, share: float, efficiency: float = 1.0, robbed_turns: int = 0, busy: float = 0.0) -> None:
        """``efficiency`` of the limited device; ``busy``: of a whole core, what something else takes."""
        self.share, self.correction = share, 1.0
        self.efficiency, self.robbed_turns, self.busy = efficiency, robbed_turns, busy
        self.limited = False
        self.threads: list[int] = []

    @property
    def quota(self) -> float:
        return self.share * self.correction

    def add(self, pid: int) -> None:
        self.limited = True

    def home(self) -> None:
        self.limited = False

    def correct(self, factor: float) -> None:
        self.correction = factor

    def train(self, seconds: float, num_threads: int = 1) -> Turn:
        if not self.limited:
            cpu_s = seconds * (1 - self.busy)
            return Turn(round(1e6 * cpu_s), seconds, cpu_s)
        self.threads.append(num_threads)
        robbed = len(self.threads) <= self.robbed_turns
        cpu_s = seconds * self.quota * (0.5 if robbed else 1.0)
        return Turn(round(1e6 * self.efficiency * cpu_s), seconds, cpu_s)

    def measure(self, num_threads: int = 1) -> Speed:
        device = device_of("a", self.share)
        return calibration.measure_device(self, device, num_threads, self, self.home)  # type: ignore[arg-type]


def test_nominal_is_the_share_of_one_thread_whatever_the_threads_and_whatever_else_runs() -> None:
    speed = Machine(0.4, efficiency=0.9, busy=0.6).measure(num_threads=2)
    assert (speed.nominal, speed.measured) == pytest.approx((0.4e6, 0.36e6))
    assert speed.num_threads == 2 and not speed.fine
    assert Machine(1.5).measure(num_threads=2).nominal == pytest.approx(1.5e6)


@pytest.mark.parametrize(("robbed_turns", "measured"), [(0, 0.4e6), (3, 0.4e6), (4, 0.4e6), (5, 0.2e6), (100, 0.2e6)])
def test_a_turn_in_which_others_took_the_device_s_time_is_taken_again_but_not_for_ever(
    robbed_turns: int, measured: float
) -> None:
    machine = Machine(0.4, robbed_turns=robbed_turns)
    assert machine.measure().measured == pytest.approx(measured)
    assert len(machine.threads) <= 2 * calibration.NUM_TURNS


# --- what a run is put down as ----------------------------------------------------------------------------------------


class Outcomes:
    """A run as ``session.run`` gives it, less what the report does not look at."""

    def __init__(self, classes: tuple[int, ...], accuracy: float | None, speeds: tuple[Speed, ...]) -> None:
        part = SimpleNamespace(classes=classes, share=0.5, trainers=("p",))
        plan = SimpleNamespace(epoch=1, mode="tasks", body=SimpleNamespace(targets="all"), parts=(part,))
        report = SimpleNamespace(trainers=("a", "b"))
        outcome = SimpleNamespace(
            formed_s=1.0,
            trained_s=20.0,
            harvested_s=2.5,
            records={"a": SimpleNamespace(plan="x"), "b": SimpleNamespace(plan="x"), "c": SimpleNamespace(plan="")},
            harvest=SimpleNamespace(report=(report,)),
        )
        use = {"a": SimpleNamespace(peak_memory_bytes=1e8, cpu_s=3.0)}
        self.result = (
            SimpleNamespace(assembled_accuracy=accuracy, central_accuracy=None, to_plain=dict) if accuracy else None
        )
        self.lab = SimpleNamespace(
            outcome=outcome,
            speeds=speeds,
            events=(),
            plans=((1.0, plan),),
            names={"p": "a"},
            use=use,
            accuracies=(),
            training_s=5.0,
            started_at=1e9,
        )


def test_a_lab_s_result_sums_up_its_runs_as_a_benchmark_does() -> None:
    spec = LabSpec("two", "digits", {}, (device_of("a", 0.5),))
    slow, fast = Speed("a", 0.5, 100.0, 96.0), Speed("a", 0.5, 100.0, 101.0)
    runs: list[Any] = [Outcomes((0, 1), 0.9, (slow,)), Outcomes((0, 1), 0.8, (fast,)), Outcomes((0, 1), 0.85, (fast,))]
    plain = to_plain(spec, "name = 'two'", ["python", "-m", "scripts.lab", "run"], 0.5, runs)
    (case,) = plain["cases"]
    assert case["case"] == "two" and case["num_repetitions"] == 3
    assert case["figures"]["accuracy"] == pytest.approx({"median": 85, "low": 80, "high": 90})
    assert case["figures"]["harvested_s"]["median"] == 22.5
    assert case["figures"]["worst_deviation"] == pytest.approx({"median": 1, "low": 1, "high": 4})
    assert case["figures"]["plans_in_force"]["high"] == 1 and case["figures"]["copies_harvested"]["low"] == 2
    assert plain["incomplete"] == "" and len(plain["runs"]) == 3
    assert plans_line(plain) == "3 runs: the same first plan in all"
    json.dumps(plain, allow_nan=False)


def test_runs_that_began_otherwise_or_were_not_calibrated_say_so() -> None:
    spec = LabSpec("two", "digits", {}, (device_of("a", 0.5),))
    runs: list[Any] = [Outcomes((0, 1), None, ()), Outcomes((0, 2), None, ())]
    plain = to_plain(spec, "", ["python", "-m", "scripts.lab"], 0.5, runs)
    assert plans_line(plain) == "2 runs: 2 different first plans"
    assert "not measured" in plain["incomplete"]
    assert not {"accuracy", "worst_deviation"} & figures(runs[0]).keys()


def test_nothing_saved_is_no_point_of_the_accuracy(tmp_path: Path) -> None:
    assert (
        Camera(tmp_path / "frames", SimpleNamespace(id="job")).accuracies(  # type: ignore[arg-type]
            SimpleNamespace(parts=()),
            "digits",
            [1.0, 2.0],  # type: ignore[arg-type]
        )
        == []
    )


# --- which core -------------------------------------------------------------------------------------------------------


def placement(*shares: float, cores: float = 2.0, cpus: Sequence[int] = (0, 1)) -> list[tuple[int, ...]]:
    devices = [device_of(f"d{number}", share, 100.0) for number, share in enumerate(shares)]
    return list(placed(devices, cpus, cores).values())


def test_a_device_stays_on_one_core_that_has_room_for_it() -> None:
    assert placement(0.9, 0.09, 0.9) == [(0,), (0,), (1,)]
    assert placement(0.4, 0.4, 0.4, 0.4) == [(0,), (1,), (0,), (1,)]
    assert placement(0.3, 0.6, 0.5, 0.4) == [(0,), (0,), (1,), (1,)]
    assert placement(0.5, 0.5, cpus=(3, 7)) == [(3,), (7,)]
    assert placement(0.6, 0.6, 0.6) == [(0,), (1,), ()], "no core has room for the third: the kernel may move it"
    assert placement(1.5) == [()]


def test_a_device_of_several_threads_stays_on_none() -> None:
    many = device_of("many", 0.5, 100.0)
    profile = dataclasses.replace(many.profile, cores=dataclasses.replace(many.profile.cores, value=4.0))
    assert placed([dataclasses.replace(many, profile=profile)], (0, 1), 2.0) == {"many": ()}


def test_a_process_is_put_on_its_devices_core(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    group = quota.DeviceGroup(quota.Controllers(2, tmp_path, tmp_path), "a", 0.1, cpus=(cpu,))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        group.add(process.pid)
        assert os.sched_getaffinity(process.pid) == {cpu}
        process.kill()


def grown(*turns: Sequence[tuple[int, float]]) -> Growth:
    """A node, with these open files and MB after each hardship of each turn."""
    found = Growth(len(turns[0]))
    for files, memory_mb in itertools.chain(*turns):
        found.look({"laptop": Use(files, memory_mb)})
    return found


def test_a_node_that_grows_from_turn_to_turn_is_named() -> None:
    same = [(58, 90.0), (64, 99.0)], [(58, 100.0), (58, 101.0)]
    assert not grown(*same, [(59, 99.0), (58, 103.0)]).wrong()
    leak = grown(*same, [(60, 99.0), (60, 100.0)], [(62, 99.0), (61, 100.0)])
    assert leak.wrong() == ["laptop: 61 open files in the last turn, 58 in the second"]
    assert grown(*same, [(58, 112.0), (58, 90.0)]).wrong() == ["laptop: 112 MB in the last turn, 101 in the second"]
    assert leak.lines() == ["laptop: open files of each turn 58 58 60 61; MB 99 101 100 100"]
    assert leak.figures() == {"files_then": 58, "files_now": 61, "memory_mb_then": 101, "memory_mb_now": 100}


def test_what_a_hardship_leaves_for_a_while_is_no_growth_and_a_short_night_tells_nothing() -> None:
    turns = [(58, 90.0), (58, 90.0)], [(58, 90.0), (58, 90.0)]
    assert not grown(*turns, [(58, 90.0), (70, 90.0)]).wrong()
    short = grown(*turns, [(90, 200.0)])
    assert not short.wrong() and not short.figures() and len(short.turns("laptop")) == 2


def test_a_night_ends_when_nothing_fills_its_disk_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[Path] = []

    def take_room(night: Night, ballast: Path) -> None:
        night._has_room.wait()
        time.sleep(0.05)  # it ends what it was at
        gone.append(ballast)

    monkeypatch.setattr(Night, "_take_room", take_room)
    night = Night(tmp_path, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    night.stop()
    night.fill("laptop")
    night.stop()
    assert gone == [tmp_path / "laptop" / "ballast"]
