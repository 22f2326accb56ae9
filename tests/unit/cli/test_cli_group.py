"""``p2ptrain group rotate`` and ``remove``: who may, what is asked and told, and what is kept of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from command_line import run, typed

from p2ptrain.ids import JobId
from p2ptrain.net.group.kept import load_kept
from p2ptrain.net.group.rotation import Followed, LeftOut, read_notice
from p2ptrain.net.keys import Identity, load_or_make_identity, new_group, new_identity
from p2ptrain.runtime.store.kept import load_groups
from p2ptrain.runtime.store.members import APPLICANTS, Member, load_members, save_members
from p2ptrain.runtime.store.state_dir import carry_job
from p2ptrain.wire import codec

ALONE = ["--interface", "127.0.0.1", "--no-discovery", "--wait", "0"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("P2PTRAIN_CODE", raising=False)
    return tmp_path / "state"


def remember(state: Path, *names: str) -> list[Identity]:
    made = [new_identity() for _ in names]
    kept = load_kept(state)
    assert kept is not None
    members = {each.peer: Member(each.public, name, time.time()) for each, name in zip(made, names, strict=True)}
    save_members(state, kept.group.tag, members)
    return made


def test_the_device_that_made_the_code_gives_the_group_another(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = run(["group", "new"], capsys)
    laptop, pi = remember(state, "laptop", "pi")
    before = load_kept(state)
    assert before is not None
    carry_job(state, before.group.tag, JobId("0123456789abcdef"))
    status, out, err = run(["group", "remove", "pi", *ALONE], capsys)
    assert status == 0 and f"goes     pi ({pi.peer})" in err and f"laptop ({laptop.peer})" in err
    assert "not seen under the new code yet: laptop" in err
    kept = load_kept(state)
    assert kept is not None and out.strip() == str(kept.group) != first.strip() and kept.was(before.group)
    assert load_groups(state)[kept.group.tag] == "0123456789abcdef"
    assert list(load_members(state, kept.group.tag)) == [laptop.peer]
    notice = codec.decode([kept.former[0].notice], "control")[1]
    told = read_notice(notice, before.group, laptop)  # type: ignore[arg-type]
    assert isinstance(told, Followed) and told.kept.group == kept.group
    assert read_notice(notice, before.group, pi) == LeftOut(removed=True)  # type: ignore[arg-type]

    again = json.loads(run(["group", "rotate", *ALONE, "--json"], capsys)[1])
    assert again["former"] == out.strip() and again["awaited"] == [laptop.peer] and again["removed"] == []
    monkeypatch.setattr("sys.stdin", typed(first))
    _, _, err = run(["group", "join"], capsys)
    assert "old code" in err and str((load_kept(state) or kept).group) == again["code"]
    assert run(["group", "show"], capsys)[1].strip() == again["code"]


def test_nobody_else_can(state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = run(["group", "rotate", *ALONE], capsys)
    assert status == 2 and "group new" in err
    monkeypatch.setattr("sys.stdin", typed(f"{new_group()}\n"))
    run(["group", "join"], capsys)
    before = (state / "group.code").read_text()
    for arguments in (["group", "rotate"], ["group", "remove", "pi"]):
        status, _, err = run([*arguments, *ALONE], capsys)
        assert status == 2 and "only the device that made the code" in err and err.count("\n") == 1
    assert (state / "group.code").read_text() == before
    run(["group", "new"], capsys)
    (state / "identity.key").unlink()
    load_or_make_identity(state)
    status, _, err = run(["group", "rotate", *ALONE], capsys)
    assert status == 2 and "if it is lost" in err


def test_who_is_removed_must_be_known_and_one(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["group", "new"], capsys)
    one, other = remember(state, "pi", "pi")
    before = (state / "group.code").read_text()
    status, _, err = run(["group", "remove", "laptop", *ALONE], capsys)
    assert status == 2 and "no member of that name" in err and one.peer in err
    status, _, err = run(["group", "remove", "pi", *ALONE], capsys)
    assert status == 2 and one.peer in err and other.peer in err
    status, _, err = run(["group", "remove", load_or_make_identity(state).peer, *ALONE], capsys)
    assert status == 2 and "itself" in err
    assert (state / "group.code").read_text() == before
    assert json.loads(run(["group", "remove", one.peer, *ALONE, "--json"], capsys)[1])["removed"] == [one.peer]


def test_devices_are_let_in_by_name(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["group", "new"], capsys)
    status, _, err = run(["group", "approve"], capsys)
    assert status == 2 and "rotate --approve" in err
    run(["group", "rotate", "--approve", *ALONE], capsys)
    assert run(["group", "approve"], capsys)[1] == "nobody asks to be let in\n"
    kept = load_kept(state)
    assert kept is not None and kept.group.approves
    asks = {each.peer: Member(each.public, "pi", time.time()) for each in (new_identity(), new_identity())}
    one, other = asks
    save_members(state, kept.group.tag, asks, APPLICANTS)
    assert all(peer in run(["group", "approve"], capsys)[1] for peer in asks)
    status, _, err = run(["group", "approve", "pi"], capsys)
    assert status == 2 and one in err and other in err, "two say that they are this one"
    assert run(["group", "approve", "laptop"], capsys)[0] == 2
    assert f"let in: pi ({one})" in run(["group", "approve", one], capsys)[1]
    assert list(load_members(state, kept.group.tag)) == [one]
    assert json.loads(run(["group", "approve", "--json"], capsys)[1]) == {"asking": {other: "pi"}, "approved": []}
