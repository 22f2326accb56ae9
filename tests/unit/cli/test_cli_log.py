"""What a device's peer did can be read afterwards, and while it goes on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2ptrain.cli import log
from p2ptrain.errors import UserError
from p2ptrain.runtime.node.journal import Journal, Line, old_path

NOW = time.time()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(NOW - 7200, "joined", peer="abc", name="laptop")
    journal.write(NOW - 60, "round", part=0, round=1, loss=0.5)
    journal.write(NOW - 30, "link", peer="abc", mbit_s=94.0)
    journal.write(NOW - 10, "left", peer="abc", name="lap\x1btop")
    journal.close()
    return tmp_path


def said(state: Path, *options: str) -> list[str]:
    result = CliRunner().invoke(log.command, ["--state", str(state), *options])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_sentences_with_day_and_time(state: Path) -> None:
    joined, round_, link, left = said(state)
    assert joined.endswith("laptop is here") and time.strftime("%Y-%m-%d", time.localtime(NOW - 7200)) in joined
    assert "round 1 done, loss 0.500" in round_
    assert left.endswith("lap?top left"), "no control character of anybody's"
    assert "94 Mbit/s" in link
    assert said(state, "-n", "1") == [left] and said(state, "--since", "1h") == [round_, link, left]


def test_a_field_that_is_called_as_the_line_s_own_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(NOW, "model-written", path="m.safetensors", **{"kind": "complete model", "why_not": ""})
    journal.close()
    (line,) = said(tmp_path)
    assert line.endswith("the complete model is in m.safetensors")


def test_lines_as_they_are(state: Path) -> None:
    assert len(said(state, "--all")) == 4
    (line,) = said(state, "--kind", "link")
    assert "mbit_s=94" in line
    told = [json.loads(each) for each in said(state, "--json")]
    assert [each["kind"] for each in told] == ["joined", "round", "link", "left"] and told[1]["loss"] == 0.5


def test_a_journal_of_another_user_is_an_error_and_no_empty_one(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).suffix != ".jsonl" and may(path, mode))
    result = CliRunner().invoke(log.command, ["--state", str(state)])
    assert isinstance(result.exception, UserError) and "can't be read by this user" in str(result.exception)


def test_a_folder_without_a_journal_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(log.command, ["--state", str(tmp_path)])
    assert result.exit_code and "no journal" in str(result.exception)


def test_what_comes_is_followed_into_the_next_file(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = state / "journal.jsonl"
    writes = iter([b'{"time":1,"kind":"a"}\n{"time":2,', b'"kind":"b"}\n', None, b'{"time":3,"kind":"c"}\n'])

    def meanwhile(seconds: float) -> None:
        data = next(writes)
        if data is None:
            path.rename(old_path(path))
            data = b'{"time":2.5,"kind":"new file"}\nno line\n'
        with path.open("ab") as file:
            file.write(data)

    monkeypatch.setattr(log.time, "sleep", meanwhile)
    coming = log._coming(path)
    assert [next(coming) for _ in range(4)] == [
        Line(1.0, "a", {}),
        Line(2.0, "b", {}),
        Line(2.5, "new file", {}),
        Line(3.0, "c", {}),
    ]
