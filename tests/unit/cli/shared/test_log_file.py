"""A log file is bounded, and nobody waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2ptrain.cli.shared import peer_session
from p2ptrain.cli.shared.log_file import KEPT, LogFile
from p2ptrain.errors import UserError
from p2ptrain.net.keys import new_group
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_options import PeerOptions


def test_it_never_grows_beyond_its_bound(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "peer.log", max_bytes=1000)
    for number in range(500):
        log.write(f"line {number:04d} of peer Zoë\n")
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == ["peer.log", *(f"peer.log.{n}" for n in range(1, KEPT + 1))]
    assert all(each.stat().st_size <= 1000 for each in files) and log.lost == 0
    assert files[0].read_text(encoding="utf-8").splitlines()[-1] == "line 0499 of peer Zoë"


def test_what_can_not_be_written_is_counted(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "peer.log")
    log.write("first")
    log.close()
    full = LogFile(Path("/dev/full"), max_bytes=0)
    full.write("x")
    full.close()
    assert (tmp_path / "peer.log").read_text() == "first\n" and full.lost == 1


def test_a_place_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--log-file .*nowhere"):
        LogFile(tmp_path / "nowhere" / "peer.log")


def test_why_a_peer_ended_stands_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*given: object, **named: object) -> None:
        await asyncio.sleep(0)
        raise UserError("no such data")

    monkeypatch.setattr(peer_session.api, "run_peer", fails)
    log = LogFile(tmp_path / "peer.log")
    with pytest.raises(UserError):
        peer_session.run(
            *(new_group(), PeerOptions(), NetworkConfig(), tmp_path, (), log),
            keep_group=False,
            quiet=True,
            as_json=False,
        )
    assert (tmp_path / "peer.log").read_text().endswith("ended: no such data\n")
