"""The journal: bounded, never raising, tolerant of torn lines, and safe to show."""

from __future__ import annotations

import errno
import math
import os

import pytest

from p2ptrain.protocol.machine import Note
from p2ptrain.runtime.node.journal import Journal, Line, old_path, read, render


@pytest.fixture
def path(tmp_path):
    return tmp_path / "job" / "journal.jsonl"


def test_what_is_written_is_read(path):
    journal = Journal(path)
    journal.write(1000.0, "started", peer="ab", n=3, loss=0.5, ok=True)
    journal.note(1001.0, Note("storage-full", (("why", "no room"), ("num", 1))))
    journal.note(1002.0, Note("odd", (("kind", "a"), ("at", 1), ("time", 2), ("self", 3))))
    lines = [Line(1000.0, "started", {"peer": "ab", "n": 3, "loss": 0.5, "ok": True})]
    lines.append(Line(1001.0, "storage-full", {"why": "no room", "num": 1}))
    lines.append(Line(1002.0, "odd", {"kind": "a", "at": 1, "time": 2, "self": 3}))
    assert list(read(path)) == lines, "fields that are named as the line's own too"
    assert lines == list(journal.tail())
    assert journal.tail(1) == (lines[2],)
    assert journal.tail(0) == ()
    assert journal.tail(9) == tuple(lines)
    journal.close()
    assert [line.kind for line in Journal(path).tail()] == ["started", "storage-full", "odd"], (
        "a restarted peer knows what happened before"
    )


def test_without_a_file_there_is_the_tail():
    journal = Journal(None, tail_lines=3)
    for i in range(10):
        journal.write(i, "x")
    assert [line.time for line in journal.tail()] == [7, 8, 9]
    assert journal.lost == 0


@pytest.mark.parametrize(
    "torn", [b'{"time": 5, "ki', b"\xff\xfe", b"[1]\n", b"null\n", b'{"time":"5","kind":"x"}\n', b"{" * 99999]
)
def test_a_torn_line_is_skipped_and_hurts_no_other(path, torn):
    Journal(path).write(1, "first")
    with path.open("ab") as file:
        file.write(torn)
    Journal(path).write(2, "second")
    assert [line.kind for line in read(path)] == ["first", "second"]


def test_size_is_bounded_by_one_old_file(path):
    journal = Journal(path, max_bytes=2000)
    for i in range(1000):
        journal.write(i, "event", text="x" * 50)
    assert path.stat().st_size <= 2000
    assert old_path(path).stat().st_size <= 2000
    assert sorted(p.name for p in path.parent.iterdir()) == ["journal.jsonl", "journal.old.jsonl"]
    times = [line.time for line in read(path)]
    assert times == [float(t) for t in range(1000 - len(times), 1000)]


def test_of_one_kind_there_are_only_so_many_lines_a_time_and_the_rest_is_counted(path):
    heard = []
    journal = Journal(path, max_of_a_kind=3, on_line=heard.append)
    for at in (0.0, 60.0, 120.0):
        for i in range(7):
            journal.write(at + i, "at every moment")
        journal.write(at + 9, "once")
    whole = [*["at every moment"] * 3, "once", "lines-left-out"]
    assert [line.kind for line in read(path)] == (3 * whole)[:-1]
    journal.close()
    lines = list(read(path))
    assert [line.kind for line in lines] == 3 * whole and list(journal.tail()) == lines
    assert [line.fields for line in lines if line.kind == "lines-left-out"] == 3 * [
        {"of": "at every moment", "lines": 4}
    ]
    assert len(heard) == 3 * 8 and journal.lost == 0, "whoever listens hears them all"


def test_a_clock_that_is_set_back_begins_to_count_anew(path):
    journal = Journal(path, max_of_a_kind=1)
    for at in (1000.0, 1001.0, 5.0, 6.0):
        journal.write(at, "x")
    journal.close()
    kept = [(line.time, line.kind) for line in read(path)]
    assert kept == [(1000.0, "x"), (5.0, "lines-left-out"), (5.0, "x"), (6.0, "lines-left-out")]


def test_where_all_are_wanted_all_are_kept(path):
    journal = Journal(path, max_of_a_kind=None)
    for i in range(2000):
        journal.write(i / 1000, "metrics")
    journal.close()
    assert len(list(read(path))) == 2000


def test_a_full_disk_is_counted_and_passes(path, monkeypatch):
    journal = Journal(path)
    journal.write(1, "before")
    real = os.write

    def full(fd, data):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    for i in range(3):
        journal.write(i, "lost")
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    journal.write(4, "half")
    monkeypatch.setattr(os, "write", real)
    journal.write(5, "after")
    assert journal.lost == 4
    assert [line.kind for line in read(path)] == ["before", "after", "lines-lost"]
    assert list(read(path))[-1].fields == {"lines": 4}
    assert len(journal.tail()) == 6


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "journal.jsonl")
    journal.write(1, "x")
    assert journal.lost == 1


def test_values_that_json_has_not(path):
    journal = Journal(path)
    journal.write(1, "x", loss=math.nan, rate=math.inf, text="\ud800" + "a" * 10_000, nothing=None)
    fields = next(read(path)).fields
    assert fields["loss"] == "nan"
    assert fields["rate"] == "inf"
    assert len(fields["text"]) <= 2000
    assert journal.lost == 0


def test_render():
    line = Line(
        0.0, "replica-acked", {"peer": "ab", "loss": 0.123456, "n": 5, "why": "no room", "ok": False, "e": None}
    )
    assert render(line)[8:] == '  replica-acked       peer=ab  loss=0.1235  n=5  why="no room"  ok=no  e=-'
    assert render(Line(0.0, "x", {"blob": "0" * 64}))[10:].split() == ["x", "blob=" + "0" * 12]


def test_render_lets_no_control_character_through():
    text = render(Line(1e300, "k\x1b[2J", {"na\nme": "a\x1b]0;title\x07b\x9b\u202e"}))
    assert text.isprintable()
