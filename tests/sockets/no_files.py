"""What happens where no file can be opened, as processes of their own: ``python no_files.py SCENE DIRECTORY ...``.

The limit of open files is the whole process's, so that no test may lower its own.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.ids import blob_id
from p2ptrain.net.keys import Group, new_group, new_identity
from p2ptrain.net.limits import MAX_OPEN_FILES, check_room, raise_open_files
from p2ptrain.net.transport import Transport
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.store.disk import StorageError
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.runtime.store.store import Store
from p2ptrain.runtime.trainer.process import TrainerProcess
from p2ptrain.wire.messages import SnapshotRef


@contextmanager
def no_files(num_left: int = 0) -> Iterator[None]:
    """No more than ``num_left`` can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, limits[1]))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(num_left):
        os.close(taken.pop())
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def refuses(work: Callable[[], object], error: type[Exception], words: str) -> None:
    try:
        work()
    except error as refusal:
        assert words in str(refusal), refusal
    else:
        raise AssertionError(f"{words!r} was not said")


def store(directory: Path) -> None:
    """What can't be saved is said, what is there stays, and later everything works again."""
    opened, journal = Store(directory / "job"), Journal(directory / "journal.jsonl", max_bytes=200)
    blob = opened.put(b"some bytes")
    opened.add_snapshot(SnapshotRef(0, new_identity().peer, 1, 1, 1, 1, blob, 10))
    before = opened.manifest
    with no_files():
        for work in (
            lambda: opened.put(b"others"),
            lambda: opened.begin(blob_id(b"more"), 4),
            lambda: opened.set_plan("plan", 2),
            lambda: opened.blobs.read(blob, 0, 4),
            lambda: opened.blobs.map(blob),
        ):
            refuses(work, StorageError, "Too many open files")
        for number in range(20):
            journal.write(float(number), "line")  # begins new files on the way, in place of the old
        late = Journal(directory / "late.jsonl")
        late.write(1.0, "lost")
        refuses(lambda: Store(directory / "job"), UserError, "Too many open files")
    assert opened.manifest == before and opened.problem == "no-files"
    assert journal.lost == 0 and late.lost == 1
    assert opened.blobs.read(blob, 0, 4) == b"some"
    assert bytes(opened.blobs.map(blob) or b"") == b"some bytes"
    for number in range(3):
        opened.put(b"more bytes %d" % number)
        opened.set_plan("plan", number)
    assert [note.kind for note in opened.take_notes()] == ["storage-no-files", "storage-works"]
    assert Store(directory / "job").manifest == opened.manifest, "and nothing was taken for damaged"
    late.write(99.0, "last")
    assert b'"last"' in (directory / "late.jsonl").read_bytes()


def starting(directory: Path) -> None:
    """Who can't begin says so, with the next step."""

    async def never(*_: object) -> None:
        raise AssertionError

    async def scene() -> None:
        transport = Transport(new_identity(), new_group(), never, ("127.0.0.1",))
        trainer = TrainerProcess(lambda event: None)
        await asyncio.sleep(0)
        for num_left in (0, 1, 6, 20):
            with no_files(num_left):
                for what in (transport, trainer):
                    if what is trainer and num_left > 1:
                        continue
                    try:
                        await what.start()
                    except UserError as error:
                        assert "ulimit -n" in str(error), error
                    else:
                        raise AssertionError(f"{what} was started")
                    assert trainer.pid is None
        await transport.start()
        await transport.close()
        await trainer.stop()

    asyncio.run(scene())
    with no_files(3):
        check_room(3, "what is needed")
        refuses(lambda: check_room(4, "what is needed"), UserError, "what is needed can't be opened")


def limits(directory: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    assert raise_open_files() == allowed == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert raise_open_files() == allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    assert raise_open_files() == 128
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
    assert raise_open_files() == 128


def peer(directory: Path, code: str, other: str) -> None:
    """A peer that is told of another when it has no file left; it goes on, and meets it when it has some again."""

    async def until(done: Callable[[], bool]) -> None:
        while not done():
            assert node.failure is None, node.failure
            await asyncio.sleep(0.02)

    async def scene() -> None:
        nonlocal node
        network = NetworkConfig(("127.0.0.1",), discover=False)
        journal = Journal(directory / "journal.jsonl")
        node = PeerNode(
            new_identity(), Group(bytes.fromhex(code)), network, PeerOptions("", "low"), StateDir(directory), journal
        )
        await node.start()
        core = node.core
        assert core is not None
        with no_files():
            node.feed(lambda now: core.propose(f"tcp://{other}", now, source="given"))
            await until(lambda: any(line.kind == "socket-refused" for line in journal.tail()))
            await until(lambda: node.transport.num_dropped >= 3)  # a few hellos later
            assert not core.sessions.peers()
        await until(lambda: bool(core.sessions.peers()))
        refusals = [line for line in journal.tail() if line.kind == "socket-refused"]
        assert len(refusals) == 1, "said once"
        print("met", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await node.close()
        assert node.failure is None

    node: PeerNode = None  # type: ignore[assignment]
    asyncio.run(scene())


SCENES: dict[str, Callable[..., Awaitable[None] | None]] = {
    "store": store,
    "starting": starting,
    "limits": limits,
    "peer": peer,
}

if __name__ == "__main__":
    SCENES[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
