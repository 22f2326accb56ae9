"""What a device keeps of its group: whole, and never a step back."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptrain.errors import UserError
from p2ptrain.net.group.founding import found
from p2ptrain.net.group.kept import (
    GROUP_FILE,
    MAX_FORMER,
    Former,
    KeptGroup,
    enter_group,
    join_group,
    load_group,
    load_kept,
    save_kept,
)
from p2ptrain.net.keys import new_group, new_identity

FOUNDER = new_identity()


def kept(*former: Former, approves: bool = False) -> KeptGroup:
    founding = found(FOUNDER.public)
    return KeptGroup(founding.group(approves=approves), founding, b"s" * 64 if approves else b"", former)


def test_all_of_it_is_read_again(tmp_path: Path) -> None:
    first = kept()
    for each in (KeptGroup(new_group()), first, kept(Former(first.group, bytes(range(256)) * 150), approves=True)):
        save_kept(tmp_path, each)
        assert load_kept(tmp_path) == each
    assert (tmp_path / GROUP_FILE).stat().st_mode & 0o777 == 0o600
    assert str(each.group) == (tmp_path / GROUP_FILE).read_text().splitlines()[0]


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    group = new_group()
    (tmp_path / GROUP_FILE).write_text(f"{group}\n")
    (tmp_path / GROUP_FILE).chmod(0o600)
    assert load_kept(tmp_path) == KeptGroup(group)


def test_of_many_codes_the_newest_are_kept(tmp_path: Path) -> None:
    now = kept()
    for _ in range(MAX_FORMER + 3):
        now = now.followed_by(kept(), b"notice")
    save_kept(tmp_path, now)
    assert load_kept(tmp_path) == now and len(now.former) == MAX_FORMER


def test_a_code_that_was_left_is_not_gone_back_to(tmp_path: Path) -> None:
    old = kept()
    new = old.followed_by(kept(), b"notice")
    save_kept(tmp_path, new)
    assert join_group(tmp_path, old.group) == new.group and load_kept(tmp_path) == new
    assert join_group(tmp_path, new.group) == new.group and load_kept(tmp_path) == new
    other = new_group()
    assert join_group(tmp_path, other) == other and load_kept(tmp_path) == KeptGroup(other)


def test_what_makes_this_device_a_founder_is_there_when_it_comes_back(tmp_path: Path) -> None:
    made, other, again = kept(), new_group(), kept(approves=True)
    save_kept(tmp_path, made)
    join_group(tmp_path, other)
    assert load_kept(tmp_path) == KeptGroup(other)
    enter_group(tmp_path, again)
    assert join_group(tmp_path, made.group) == made.group and load_kept(tmp_path) == made
    assert join_group(tmp_path, again.group) == again.group and load_kept(tmp_path) == again
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


@pytest.mark.parametrize("cut", ["a word", "founder", "founder x y", "former", "former K7QF aaaa", "admission zz"])
def test_a_damaged_file_is_told_and_left(tmp_path: Path, cut: str) -> None:
    save_kept(tmp_path, kept())
    path = tmp_path / GROUP_FILE
    path.write_text(path.read_text() + cut + "\n")
    with pytest.raises(UserError, match=r"damaged.*join the group again"):
        load_group(tmp_path)
    assert cut in path.read_text()


def test_a_founder_that_did_not_make_the_code_is_damage(tmp_path: Path) -> None:
    save_kept(tmp_path, KeptGroup(new_group(), found(FOUNDER.public)))
    with pytest.raises(UserError, match="did not make this code"):
        load_kept(tmp_path)
