"""Output that nobody waits for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime import outlet as outlets
from p2ptrain.runtime.node import journal as journals
from p2ptrain.runtime.node.journal import Journal, read
from p2ptrain.runtime.outlet import Outlet, output_aside

WAIT_S = 60.0


def test_a_writer_that_hangs_holds_up_nobody() -> None:
    goes_on, begun = threading.Event(), threading.Event()
    written: list[int] = []
    outlet = Outlet("test", max_waiting=10)

    def hang() -> None:
        begun.set()
        goes_on.wait(WAIT_S)

    outlet.put(hang)
    assert begun.wait(WAIT_S)
    for number in range(25):
        outlet.put(lambda number=number: written.append(number))  # type: ignore[misc]
    assert outlet.lost == 15 and not written
    goes_on.set()
    assert outlet.flush(WAIT_S) and written == list(range(10)), "what fits is written, in order"
    assert outlet.close()


def test_what_cannot_be_written_is_counted() -> None:
    outlet = Outlet("test")
    outlet.put(lambda: os.write(-1, b"x"))
    outlet.put(lambda: "\u732b".encode("latin-1"))
    assert outlet.close() and outlet.lost == 2


def test_a_journal_does_not_wait_for_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, real = threading.Event(), os.write

    def slow(fd: int, data: bytes) -> int:
        goes_on.wait(WAIT_S)
        return real(fd, data)

    monkeypatch.setattr(journals.os, "write", slow)
    heard: list[str] = []
    journal = Journal(tmp_path / "journal.jsonl", aside=True, on_line=lambda line: heard.append(line.kind))
    for number in range(50):
        journal.note(number, Note("event"))
    assert len(heard) == 50 and len(journal.tail()) == 50 and not list(read(tmp_path / "journal.jsonl"))
    goes_on.set()
    journal.close()
    assert [line.time for line in read(tmp_path / "journal.jsonl")] == list(range(50)) and journal.lost == 0


def test_a_journal_whose_disk_hangs_for_good_can_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(outlets, "CLOSE_S", 0.05)
    monkeypatch.setattr(outlets.Outlet.flush, "__defaults__", (0.05,))
    monkeypatch.setattr(journals.os, "write", lambda fd, data: goes_on.wait(WAIT_S) and len(data))
    journal = Journal(tmp_path / "journal.jsonl", aside=True)
    journal.write(1, "event")
    journal.close()
    goes_on.set()


def test_who_hears_a_line_may_fail_to_print_it(tmp_path: Path) -> None:
    def printer(line: object) -> None:
        raise BrokenPipeError

    Journal(None, on_line=printer).write(1, "event")


SCENE = """
import sys, click, warnings
from p2ptrain.runtime.outlet import output_aside
with output_aside():
    click.echo("one \\u732b")
    print("two", flush=True)
    warnings.warn("three")
    click.echo("four", err=True)
    for _ in range(20_000):
        print("x" * 100)
open(sys.argv[1], "w").write("went on")
"""


def run_scene(tmp_path: Path, **streams: object) -> subprocess.CompletedProcess[bytes]:
    done = tmp_path / "done"
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", SCENE, str(done)], env=env, timeout=WAIT_S, check=False, **streams)  # type: ignore[call-overload]
    assert done.read_text() == "went on" and ended.returncode == 0
    return ended  # type: ignore[no-any-return]


def test_a_terminal_without_the_letters(tmp_path: Path) -> None:
    ended = run_scene(tmp_path, capture_output=True)
    assert ended.stdout.startswith(b"one ?\ntwo\n") and b"three" in ended.stderr and b"four" in ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        run_scene(tmp_path, stdout=full, stderr=full)


def test_a_pipe_that_nobody_reads_and_one_that_is_closed(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    run_scene(tmp_path, stdout=writes, stderr=writes)  # 2 MB into a pipe of 64 KiB
    os.close(reads)
    run_scene(tmp_path, stdout=writes, stderr=writes)
    os.close(writes)


def test_streams_without_a_file_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with output_aside():
        click.echo("heard")
    assert capsys.readouterr().out == "heard\n" and (sys.stdout, sys.stderr) == before
