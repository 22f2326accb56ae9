"""A group gets a new code while it trains: it goes on under it, without the one that was removed, and has its model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from group import make_job, peer_group

from p2ptrain.net.group.founding import found
from p2ptrain.net.group.kept import KeptGroup, load_kept, save_kept
from p2ptrain.net.keys import load_or_make_identity
from p2ptrain.runtime.store.members import load_members

pytestmark = pytest.mark.slow
WAIT_S = 240.0


def test_a_group_goes_on_under_its_new_code(tmp_path: Path) -> None:
    with peer_group(tmp_path) as peers:
        founding = found(load_or_make_identity(tmp_path / "a").public)
        old = founding.group(approves=False)
        save_kept(tmp_path / "a", KeptGroup(old, founding))
        peers.group = old
        maker, stays, goes = peers.start(3, make_job(mode="replicas", rounds=6, epochs=4))
        peers.until_round(1, timeout_s=WAIT_S)
        peers.until(lambda: len(load_members(maker.state, old.tag)) == 2, WAIT_S, "the maker knows all")

        command = [sys.executable, "-m", "p2ptrain.cli.main", "group", "remove", "c", "--state", str(maker.state)]
        command += ["--interface", "127.0.0.1", "--no-discovery", "--peer", maker.address, "--json"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S).stdout)
        assert told["removed"] == [goes.id] and told["former"] == str(old)
        assert goes.wait(WAIT_S) == 2 and "removed from the group" in goes.errors.read_text()

        peers.until_all("new-code", WAIT_S, [maker, stays])
        peers.until_all("done", WAIT_S, [maker, stays])
        for peer in (maker, stays):
            kept = load_kept(peer.state)
            assert kept is not None and str(kept.group) == told["code"]
            rounds = [int(line.fields["round"] or 0) for line in peer.lines("round")]
            assert max(rounds) == 6 and rounds.count(1) <= 1, "it did not begin anew"
        peers.group = kept.group
        assert not peers.harvest().missing
