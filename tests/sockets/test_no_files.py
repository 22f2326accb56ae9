"""A device with no file or socket left: it says so, goes on with what it has, and works again when there are some."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from test_600_visits import DEADLINE_S, endpoint, peer_node, until

from p2ptrain.net.keys import new_group

SCRIPT = str(Path(__file__).with_name("no_files.py"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and counts descriptors")


@pytest.mark.parametrize("scene", ["limits", "store", "starting"])
def test_without_files(scene: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, scene, str(tmp_path)], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr


def test_a_peer_without_sockets_lives_on_and_meets_the_other_later(tmp_path: Path) -> None:
    async def scene() -> None:
        group = new_group()
        node = peer_node(group, tmp_path / "other")
        await node.start()
        core = node.core
        assert core is not None
        low = await asyncio.create_subprocess_exec(
            *(sys.executable, SCRIPT, "peer", str(tmp_path / "low"), group.code.hex(), endpoint(node)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert low.stdin is not None and low.stdout is not None and low.stderr is not None
        try:
            met = await asyncio.wait_for(low.stdout.readline(), DEADLINE_S)
            assert met == b"met\n", (await low.stderr.read()).decode()
            await until(lambda: bool(core.sessions.peers()), "the other side has not met it")
            low.stdin.close()
            assert await asyncio.wait_for(low.wait(), DEADLINE_S) == 0, (await low.stderr.read()).decode()
        finally:
            if low.returncode is None:
                low.kill()
            await node.close()
            node.state.close()

    asyncio.run(scene())
