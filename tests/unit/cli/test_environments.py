"""Odd systems: no home directory, no locks, no modes of files, no list of interfaces, names in another encoding."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import ifaddr
import pytest

from p2ptrain import api
from p2ptrain.cli.shared.options import DeviceChoice
from p2ptrain.core.commands import COMMON, LENGTHS, Configure, decode, encode
from p2ptrain.errors import UserError
from p2ptrain.net import interfaces, private_files
from p2ptrain.net.keys import IDENTITY_FILE, load_or_make_identity
from p2ptrain.runtime.store import blobs, state_dir
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.words import as_text, counted


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2PTRAIN_STATE", raising=False)

    def nowhere(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(UserError, match=r"name a directory .* --state or P2PTRAIN_STATE"):
        api.default_state_dir()
    monkeypatch.setenv("P2PTRAIN_STATE", "/somewhere")
    assert api.default_state_dir() == Path("/somewhere")


def test_a_disk_without_locks_is_used_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(state_dir, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=1, LOCK_NB=2))
    state = StateDir(tmp_path)
    assert [note.kind for note in state.take_notes()] == ["no-locks"]
    state.close()
    monkeypatch.undo()
    first = StateDir(tmp_path)
    with pytest.raises(UserError, match=f"in use by another peer .pid {os.getpid()}"):
        StateDir(tmp_path)
    first.close()


def test_a_disk_on_which_all_files_look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = load_or_make_identity(tmp_path)
    (tmp_path / IDENTITY_FILE).chmod(0o644)
    with pytest.raises(UserError, match="can be read by other users"):
        load_or_make_identity(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [IDENTITY_FILE], "nothing is left behind"
    real = os.fstat
    with monkeypatch.context() as patch:
        patch.setattr(private_files.os, "fstat", lambda fd: SimpleNamespace(st_mode=real(fd).st_mode | 0o755))
        assert load_or_make_identity(tmp_path) == identity


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_a_disk_that_cannot_sync_folders(tmp_path: Path) -> None:
    class Odd(blobs.Disk):
        def fsync(self, fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EINVAL, "Invalid argument")

    Odd().write_file(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize(
    "why", [OSError(errno.EACCES, "Permission denied"), UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "end of data")]
)
def test_where_the_system_lists_no_interfaces(why: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> Any:
        raise why

    monkeypatch.setattr(ifaddr, "get_adapters", forbidden)
    found = interfaces.all_addresses()
    assert found[-1].address == "127.0.0.1" and found[-1].kind == "loopback"
    assert interfaces.choose(found), "there is something to listen on"


def test_names_and_paths_in_another_encoding() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert as_text(name) == "caf?" and as_text("caf\u00e9 \u732b") == "caf\u00e9 \u732b"
    sent = Configure("{}", f"images:/data/{name}", "peer")
    head, _ = encode(sent)
    assert decode(head[LENGTHS.size :], b"", COMMON) == sent


def test_what_cannot_train_is_said() -> None:
    choice = DeviceChoice(["cpu", "cuda", "auto"])
    with pytest.raises(click.BadParameter, match="mps is not supported yet; without --device"):
        choice.convert("mps", None, None)
    with pytest.raises(click.BadParameter, match="is not one of"):
        choice.convert("gpu", None, None)
    assert choice.convert("cuda", None, None) == "cuda"


def test_streams_that_whoever_started_it_has_closed() -> None:
    """As by some daemons: what is opened next must not get the number of the standard output."""
    program = (
        "import os, sys\n"
        "os.closerange(0, 3)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"  # as Python has it then
        "from p2ptrain.cli.main import open_streams\n"
        "open_streams()\n"
        "print('nobody reads this'), sys.stderr.write(sys.stdin.readline())\n"
        "os._exit(os.open('/dev/null', os.O_RDONLY))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert 3 <= ended.returncode < 16 and not ended.stdout + ended.stderr


def test_numbers_of_things() -> None:
    assert [counted(n, "CPU thread") for n in (1, 2, 1024)] == ["1 CPU thread", "2 CPU threads", "1,024 CPU threads"]


def test_the_limit_of_open_files_is_raised_before_anything_else() -> None:
    """A shell's soft limit may be a few dozen."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 1024:
        pytest.skip(f"the hard limit is {hard} here")
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (52, {min(hard, 4096) if hard > 0 else 4096}))\n"
        "from p2ptrain.cli.main import main\n"
        "try: main(['group', '--help'])\n"
        "except SystemExit: pass\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert int(ended.stdout.split()[-1]) >= 1024
