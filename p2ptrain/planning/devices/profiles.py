"""Device profiles: what a device can do, in a TOML file, each number marked as measured or estimated.

Invariant: a ``DeviceProfile`` says for each of its numbers whether it was measured on such a device or estimated, and
from what (``source``); a file that does not say so is refused. Profiles are data for planning and for the lab: a peer
that measured itself needs none.

    name = "Some board"
    kind = "board"                     # board, phone, laptop, desktop or server
    accelerator = ""                   # what trains, if not the CPU
    [flops_per_s]                      # sustained, training a small CNN in float32
    value = 8e9
    basis = "estimated"                # or "measured"
    source = "how this number came about"

and tables of the same form for ``memory_bytes`` (what training may use), ``link_bytes_per_s``, ``cores``, and, if they
are known, ``flops_per_s_one_core`` and ``disk_bytes_per_s``; and measured times of models' blocks (``profile_times``).
"""

from __future__ import annotations

import math
import os
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from p2ptrain.errors import UserError
from p2ptrain.planning.devices import profile_times
from p2ptrain.planning.devices.profile_times import MeasuredBlocks, block_times_of, quoted

Basis = Literal["measured", "estimated"]
Kind = Literal["board", "phone", "laptop", "desktop", "server"]
PROFILES_FOLDER = "peers"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and what it rests on."""

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    name: str
    kind: Kind
    accelerator: str
    """What trains, if not the CPU; "" = the CPU."""
    flops_per_s: Figure
    """Sustained, training a small CNN in float32, on everything that trains."""
    memory_bytes: Figure
    """What training may use: not what the device has."""
    link_bytes_per_s: Figure
    cores: Figure
    flops_per_s_one_core: Figure | None = None
    disk_bytes_per_s: Figure | None = None
    block_times: tuple[MeasuredBlocks, ...] = ()

    def to_toml(self) -> str:
        """The file that ``read_profile`` reads back to an equal profile."""
        lines = [f"{key} = {quoted(getattr(self, key))}" for key in TEXTS]
        for key in (*LIMITS,):
            figure = getattr(self, key)
            if figure is not None:
                lines += ["", f"[{key}]", f"value = {_number(figure.value)}"]
                lines += [f"basis = {quoted(figure.basis)}", f"source = {quoted(figure.source)}"]
        return "\n".join(lines) + "\n" + "".join("\n" + each.to_toml() for each in self.block_times)


TEXTS = ("name", "kind", "accelerator")
LIMITS: dict[str, tuple[float, float]] = {
    "flops_per_s": (1e5, 1e18),
    "memory_bytes": (1 << 20, 1 << 50),
    "link_bytes_per_s": (1e2, 1e12),
    "cores": (0.01, 4096),
    "flops_per_s_one_core": (1e5, 1e18),
    "disk_bytes_per_s": (1e3, 1e12),
}
LEAST_FLOPS_PER_S = 1.0
"""Of a figure that can be meant, whoever says it: a smaller one is none that anybody knows."""
OPTIONAL = ("flops_per_s_one_core", "disk_bytes_per_s")


def find_profile(name_or_path: str, folder: Path | None = None) -> Path:
    """A profile's file: a path, or the name of a file in ``peers/``. Raises ``UserError`` naming what there is.

    Without a ``folder``: the one here, and those that came with the package.
    """
    folders = shipped_folders() if folder is None else (folder,)
    for path in (Path(os.path.expanduser(name_or_path)), *(each / f"{name_or_path}.toml" for each in folders)):
        if path.is_file():
            return path
    known = ", ".join(sorted({path.stem for each in folders for path in each.glob("*.toml")})) or "none"
    raise UserError(
        f"no device profile {name_or_path!r}: neither a file nor one of those in {PROFILES_FOLDER}/ ({known}); "
        "give one of these, or write this device's with `p2ptrain probe`"
    )


def shipped_folders() -> tuple[Path, ...]:
    """Where profiles lie: ``peers/`` here, in the repository that this is run from, and where pip has put it."""
    schemes = [sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")]
    installed = [Path(sysconfig.get_path("data", scheme)) / "share" / "p2ptrain" for scheme in schemes]
    roots = (Path(), Path(__file__).resolve().parents[3], *installed)
    return tuple(root / PROFILES_FOLDER for root in roots)


def read_profile(path: Path) -> DeviceProfile:
    """Read and check a profile. Raises ``UserError`` naming file, key and what was expected."""
    try:
        return parse_profile(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such device profile; `p2ptrain probe` writes one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path}: not a readable TOML profile ({error}); correct it, or see {PROFILES_FOLDER}/"
        ) from None


def parse_profile(text: str, path: Path) -> DeviceProfile:
    """Check a profile's text, which is or will be the file's. Raises as ``read_profile`` does."""
    raw = tomllib.loads(text)
    known = (*TEXTS, *LIMITS, profile_times.KEY)
    for key in raw:
        if key not in known:
            raise UserError(f"{path}: {key}: unknown key; known are {', '.join(known)}; correct or remove it")
    name, accelerator = _text(raw, "name", path), _text(raw, "accelerator", path)
    kind = _text(raw, "kind", path)
    if kind not in get_args(Kind):
        raise UserError(f"{path}: kind: {kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
    if not name:
        raise UserError(f"{path}: name: empty; say what device this is")
    figures = {key: _figure(raw[key], key, path) for key in LIMITS if key in raw}
    for key in LIMITS:
        if key not in figures and key not in OPTIONAL:
            raise UserError(f"{path}: [{key}]: missing; add the table with value, basis and source")
    return DeviceProfile(
        name=name,
        kind=cast(Kind, kind),
        accelerator=accelerator,
        flops_per_s=figures["flops_per_s"],
        memory_bytes=figures["memory_bytes"],
        link_bytes_per_s=figures["link_bytes_per_s"],
        cores=figures["cores"],
        flops_per_s_one_core=figures.get("flops_per_s_one_core"),
        disk_bytes_per_s=figures.get("disk_bytes_per_s"),
        block_times=block_times_of(raw.get(profile_times.KEY, []), path),
    )


def _text(raw: Mapping[str, object], key: str, path: Path) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or len(value) > 200:
        said = "missing" if key not in raw else f"expected a text of at most 200 characters, got {value!r:.60}"
        raise UserError(f'{path}: {key}: {said}; write {key} = "..."')
    return value


def _figure(table: object, key: str, path: Path) -> Figure:
    if not isinstance(table, dict):
        raise UserError(f"{path}: {key}: expected a table; write [{key}] with value, basis and source")
    for name in table:
        if name not in ("value", "basis", "source"):
            raise UserError(f"{path}: {key}.{name}: unknown key; a number has value, basis and source")
    value, basis, source = table.get("value"), table.get("basis"), table.get("source")
    low, high = LIMITS[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{path}: {key}.value: {value!r} is not a number; give one in {low:g}..{high:g}")
    if not low <= value <= high:
        raise UserError(f"{path}: {key}.value: {value:g} is outside {low:g}..{high:g}; check its unit")
    if basis not in get_args(Basis):
        raise UserError(f'{path}: {key}.basis: {basis!r}; say "measured" or "estimated"')
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"{path}: {key}.source: missing; say how the number came about")
    return Figure(float(value), cast(Basis, basis), source)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
