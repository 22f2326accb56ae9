"""What a peer's options leave open is measured, or as a profile says; what they say stays."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.errors import UserError
from p2ptrain.runtime import preflight
from p2ptrain.runtime.node.peer_options import PeerOptions

FOUND = preflight.Findings({"cat": 3}, 1, flops_per_s=5e9, memory_bytes=1 << 30)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[preflight.Request]:
    """What was to be checked and measured."""
    requests: list[preflight.Request] = []

    def look(request: preflight.Request, state: Path) -> preflight.Findings:
        requests.append(request)
        return FOUND if request.device else dataclasses.replace(FOUND, flops_per_s=0.0, memory_bytes=0)

    monkeypatch.setattr(preflight, "preflight", look)
    return requests


def test_all_defaults_are_filled_in(asked: list[preflight.Request], tmp_path: Path) -> None:
    assert not preflight.is_prepared(PeerOptions(data="digits"))
    options, found = preflight.prepare(PeerOptions(data="digits"), tmp_path)
    assert options.name and options.num_threads >= 1 and options.device == "cpu" and found is FOUND
    assert (options.flops_per_s, options.memory_bytes) == (5e9, 1 << 30)
    assert asked[0].device and asked[0].threads == options.num_threads
    assert preflight.is_prepared(options)


def test_a_name_that_no_message_has_room_for_is_refused() -> None:
    with pytest.raises(UserError, match="longer than 64 characters"):
        PeerOptions(name="ü" * 65)
    assert PeerOptions(name="ü" * 64).name


def test_what_was_said_stays(asked: list[preflight.Request], tmp_path: Path) -> None:
    given = PeerOptions("digits", "me", flops_per_s=0.0, memory_bytes=7, num_threads=3, device="cpu")
    assert preflight.is_prepared(given)
    assert preflight.prepare(given, tmp_path)[0] == given and not asked[0].device, "nothing is measured"
    part = dataclasses.replace(given, flops_per_s=None)
    assert preflight.prepare(part, tmp_path)[0] == dataclasses.replace(given, flops_per_s=5e9)


def test_a_profile_counts_more_than_a_measurement(asked: list[preflight.Request], tmp_path: Path) -> None:
    values = {"flops_per_s": 1e6, "memory_bytes": 9.0, "link_bytes_per_s": 3.0}
    profile: Any = SimpleNamespace(accelerator="", **{k: SimpleNamespace(value=v) for k, v in values.items()})
    options, _ = preflight.prepare(PeerOptions(data="digits"), tmp_path, profile)
    assert (options.flops_per_s, options.memory_bytes, options.link_bytes_per_s) == (1e6, 9, 3.0)
    assert not asked[0].device


def test_ctrl_c_reaches_the_check_where_this_process_waits_for_it_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []

    def run(command: list[str], *, process_group: int | None, **options: Any) -> Any:
        groups.append(process_group)
        return SimpleNamespace(stdout='{"samples": {}}', returncode=0)

    monkeypatch.setattr(preflight.subprocess, "run", run)
    preflight._ask(preflight.Request(data=""))
    waiting = threading.Thread(target=preflight._ask, args=(preflight.Request(data=""),))
    waiting.start()
    waiting.join()
    assert groups == [0, None]
