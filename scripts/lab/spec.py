"""What a lab file says: devices, job, data, network, events.

    name = "three unlike devices"
    data = "digits"                 # split evenly, unless devices say what they have
    core_flops_per_s = 20e9         # what one core counts as when the group plans
    timeout_s = 900
    train_s = 0                     # harvest so many seconds after the first is training; 0 = when the job is done
    [job]                           # as in a job file; classes, shape and normalisation come from the data
                                    # (input_shape, augment = as for `p2ptrain job new`)
    mode = "tasks"
    [job.training]
    rounds = 10
    [network]                       # of every link, one way
    delay_ms = 2.0
    loss = 0.0
    [[device]]
    name = "laptop"
    share = 0.5                     # of a core
    rate_mbit = 50
    memory_mb = 1500
    has_data = false                # it only helps others
    [[device]]
    name = "pi"
    profile = "raspberry-pi-4"      # a file in peers/: share, rate and memory follow from it
    [[event]]
    at_s = 30                       # after all are training; or after = "start"
    do = "kill"                     # kill, stall, continue, slow, rate, cut, heal, start
    device = "pi"

Invariant: a ``LabSpec`` is consistent: names are unique, events name devices that there are, and what is missing has
been filled in from profiles. Whether the machine is large enough is for ``check_fits``.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from p2ptrain.errors import UserError
from p2ptrain.planning.devices.profiles import DeviceProfile, Figure, find_profile, read_profile

Action = Literal["kill", "stall", "continue", "slow", "rate", "cut", "heal", "start"]
After = Literal["start", "training"]
SMALLEST_SHARE = 0.02
"""Of a core: with less, importing torch alone takes minutes."""
MAX_DEVICES = 64
CORE = 20e9
"""FLOP/s that one core counts as when the group plans; only ratios matter."""


@dataclass(frozen=True, slots=True)
class Device:
    """``rate_mbit`` and ``memory_mb`` 0 = no limit."""

    name: str
    share: float
    """Of a core."""
    profile: DeviceProfile
    """What its peer tells the group."""
    rate_mbit: float = 0.0
    memory_mb: float = 0.0
    shard: str = ""
    classes: tuple[str, ...] = ()
    has_data: bool = True
    """Without, it only helps others."""
    dirichlet: float = 0.0
    """How unevenly shares are cut by class; 0 = evenly."""

    def num_threads(self, num_cores: float) -> int:
        """To train with, on a machine of so many cores: one for each core that the device's profile says it has."""
        return max(1, min(math.ceil(self.profile.cores.value), math.floor(num_cores)))


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    do: Action
    device: str = ""
    share: float = 0.0
    rate_mbit: float = 0.0
    sides: tuple[tuple[str, ...], ...] = ()
    """Of a cut: who still reaches whom. Whoever is on no side is alone."""
    after: After = "training"


@dataclass(frozen=True, slots=True)
class LabSpec:
    name: str
    data: str
    job: Mapping[str, Any]
    """Tables of a job file, less what follows from the data."""
    devices: tuple[Device, ...]
    events: tuple[Event, ...] = ()
    delay_ms: float = 0.0
    loss: float = 0.0
    timeout_s: float = 1800.0
    train_s: float = 0.0
    """After the first device is training; then what has been saved is harvested. 0 = when the job is done."""

    @property
    def late(self) -> frozenset[str]:
        """Devices that an event starts first."""
        first: dict[str, Action] = {}
        for event in sorted(self.events, key=lambda e: (e.after == "training", e.at_s)):
            first.setdefault(event.device, event.do)
        return frozenset(name for name, do in first.items() if do == "start")

    @property
    def total_share(self) -> float:
        """The most that runs at once."""
        peak = {device.name: device.share for device in self.devices}
        for event in self.events:
            if event.do == "slow":
                peak[event.device] = max(peak[event.device], event.share)
        return sum(peak.values())


def read_lab(path: Path, profiles: Path) -> LabSpec:
    """Read and check a lab file. Raises ``UserError`` naming file, key and what was expected."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such lab file; there are some in scripts/lab/files/") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a readable TOML lab file ({error})") from None
    reader = _Reader(str(path))
    keys = ("name", "data", "job", "network", "device", "event", "timeout_s", "train_s", "core_flops_per_s")
    top = reader.table(raw, "", *keys)
    network = reader.table(top.get("network", {}), "network.", "delay_ms", "loss")
    core = reader.number(top, "core_flops_per_s", CORE, 1e6, 1e15)
    devices = _devices(reader, top.get("device"), core, profiles)
    train_s = reader.number(top, "train_s", 0.0, 0, 1e6)
    events = _events(reader, top.get("event", []), {device.name for device in devices}, train_s or math.inf)
    job = top.get("job", {})
    if not isinstance(job, dict) or "data" in job:
        raise reader.wrong("job", "expected a table as in a job file, without `data`: that follows from the samples")
    return LabSpec(
        name=reader.text(top, "name", path.stem),
        data=reader.text(top, "data", None),
        job=job,
        devices=devices,
        events=events,
        delay_ms=reader.number(network, "network.delay_ms", 0.0, 0, 10_000),
        loss=reader.number(network, "network.loss", 0.0, 0, 0.9),
        timeout_s=reader.number(top, "timeout_s", 1800.0, 1, 1e6),
        train_s=train_s,
    )


def device_of(
    name: str,
    share: float,
    rate_mbit: float = 0.0,
    memory_mb: float = 0.0,
    *,
    shard: str = "",
    has_data: bool = True,
    core: float = CORE,
) -> Device:
    """A device by its share of a core, for labs that a program describes."""
    profile = _profile(name, share, core, rate_mbit, memory_mb)
    return Device(name, share, profile, rate_mbit, memory_mb, shard, has_data=has_data)


def check_fits(spec: LabSpec, num_cores: float) -> None:
    """Raises ``UserError`` if the shares ask for more than the machine has."""
    if spec.total_share > num_cores + 1e-9:
        raise UserError(
            f"the devices ask for {spec.total_share:.2f} cores, this machine has {num_cores:g}: "
            "scale all shares down by the same factor, and the rates with them"
        )


class _Reader:
    """Checked access to the tables of one file."""

    def __init__(self, where: str) -> None:
        self._where = where

    def wrong(self, key: str, what: str) -> UserError:
        return UserError(f"{self._where}: {key}: {what}")

    def table(self, raw: object, prefix: str, *known: str) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise self.wrong(prefix.rstrip("."), "expected a table")
        for key in raw:
            if key not in known:
                raise self.wrong(f"{prefix}{key}", f"unknown key; known here: {', '.join(known)}")
        return raw

    def number(self, table: Mapping[str, Any], key: str, default: float | None, low: float, high: float) -> float:
        value = table.get(key.rpartition(".")[2], default)
        if value is None:
            raise self.wrong(key, "missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(key, f"{value!r} is not a number")
        if not low <= value <= high:
            raise self.wrong(key, f"{value:g} is outside {low:g}..{high:g}")
        return float(value)

    def text(self, table: Mapping[str, Any], key: str, default: str | None) -> str:
        value = table.get(key.rpartition(".")[2], default)
        if not isinstance(value, str):
            raise self.wrong(key, "missing" if value is None else f"expected a text, got {value!r:.60}")
        return value

    def names(self, value: object, key: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "expected a list of names")
        return tuple(value)


def _devices(reader: _Reader, raw: object, core: float, profiles: Path) -> tuple[Device, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_DEVICES:
        raise reader.wrong("device", f"expected 1 to {MAX_DEVICES} [[device]] tables")
    keys = ("name", "profile", "share", "rate_mbit", "memory_mb", "shard", "classes", "has_data")
    tables = [reader.table(table, f"device[{i}].", *keys) for i, table in enumerate(raw)]
    known = {
        table["profile"]: read_profile(find_profile(reader.text(table, "profile", None), profiles))
        for table in tables
        if "profile" in table
    }
    fastest = max((profile.flops_per_s.value for profile in known.values()), default=0.0)
    devices: list[Device] = []
    for i, table in enumerate(tables):
        prefix = f"device[{i}]."
        name = reader.text(table, prefix + "name", None)
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 40 or not name.isascii():
            raise reader.wrong(prefix + "name", f"{name!r}: letters, digits, - and _ only, at most 40")
        if any(device.name == name for device in devices):
            raise reader.wrong(prefix + "name", f"{name} is there twice")
        profile = known.get(table.get("profile", ""))
        if profile is None and "share" not in table:
            raise reader.wrong(prefix + "share", "missing; give a share of a core, or a profile from peers/")
        default = profile.flops_per_s.value / fastest if profile else None
        share = reader.number(table, prefix + "share", default, SMALLEST_SHARE, 64)
        rate = profile.link_bytes_per_s.value * 8 / 1e6 if profile else 0.0
        memory = profile.memory_bytes.value / 1e6 if profile else 0.0
        rate = reader.number(table, prefix + "rate_mbit", rate, 0, 1e5)
        memory = reader.number(table, prefix + "memory_mb", memory, 0, 1e7)
        classes = reader.names(table.get("classes", []), prefix + "classes")
        shard = reader.text(table, prefix + "shard", "" if classes else f"{i + 1}/{len(tables)}")
        has_data = table.get("has_data", True)
        if not isinstance(has_data, bool):
            raise reader.wrong(prefix + "has_data", f"{has_data!r}: expected true or false")
        devices.append(
            Device(
                name=name,
                share=share,
                profile=profile or _profile(name, share, core, rate, memory),
                rate_mbit=rate,
                memory_mb=memory,
                shard=shard,
                classes=classes,
                has_data=has_data,
            )
        )
    return tuple(devices)


def _profile(name: str, share: float, core: float, rate_mbit: float, memory_mb: float) -> DeviceProfile:
    """Of a device that the lab file describes itself. The same file gives the same figures, hence the same plan."""

    def figure(value: float) -> Figure:
        return Figure(value, "estimated", "as the lab file says")

    return DeviceProfile(
        name=name,
        kind="board",
        accelerator="",
        flops_per_s=figure(share * core),
        memory_bytes=figure((memory_mb or 4000.0) * 1e6),
        link_bytes_per_s=figure((rate_mbit or 1000.0) * 1e6 / 8),
        cores=figure(max(1.0, math.ceil(share))),
    )


def _events(reader: _Reader, raw: object, names: set[str], train_s: float) -> tuple[Event, ...]:
    if not isinstance(raw, list):
        raise reader.wrong("event", "expected [[event]] tables")
    events = []
    for i, given in enumerate(raw):
        prefix = f"event[{i}]."
        table = reader.table(given, prefix, "at_s", "do", "device", "share", "rate_mbit", "sides", "after")
        do, after = reader.text(table, prefix + "do", None), reader.text(table, prefix + "after", "training")
        if do not in get_args(Action):
            raise reader.wrong(prefix + "do", f"{do!r} is not one of {', '.join(get_args(Action))}")
        if after not in get_args(After):
            raise reader.wrong(prefix + "after", f"{after!r} is not one of {', '.join(get_args(After))}")
        at_s = reader.number(table, prefix + "at_s", None, 0, 1e6)
        if after == "training" and at_s >= train_s:
            raise reader.wrong(prefix + "at_s", f"{at_s:g} is not before the end of training, train_s = {train_s:g}")
        device = reader.text(table, prefix + "device", "")
        if do not in ("cut", "heal") and device not in names:
            raise reader.wrong(prefix + "device", f"{device!r} is no device of this lab: {', '.join(sorted(names))}")
        raw_sides = table.get("sides", [])
        if not isinstance(raw_sides, list) or (do == "cut" and not raw_sides):
            raise reader.wrong(prefix + "sides", 'expected lists of names, such as [["a", "b"], ["c"]]')
        sides = tuple(reader.names(side, prefix + "sides") for side in raw_sides)
        flat = [name for side in sides for name in side]
        if len(flat) != len(set(flat)) or not set(flat) <= names:
            raise reader.wrong(prefix + "sides", "a name is there twice, or is no device of this lab")
        events.append(
            Event(
                at_s=at_s,
                do=do,  # type: ignore[arg-type]
                device=device,
                share=reader.number(table, prefix + "share", None, SMALLEST_SHARE, 64) if do == "slow" else 0.0,
                rate_mbit=reader.number(table, prefix + "rate_mbit", None, 0.01, 1e5) if do == "rate" else 0.0,
                sides=sides,
                after=after,  # type: ignore[arg-type]
            )
        )
    return tuple(events)
