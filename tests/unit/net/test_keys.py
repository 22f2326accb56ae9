"""Identities on disk, and join codes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from p2ptrain.errors import UserError
from p2ptrain.net import keys
from p2ptrain.net.group import kept
from p2ptrain.net.group.kept import KeptGroup
from p2ptrain.net.keys import OPEN_GROUP, Group


def test_an_identity_is_made_once_and_private(tmp_path: Path) -> None:
    made = keys.load_or_make_identity(tmp_path / "state")
    path = tmp_path / "state" / keys.IDENTITY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.load_or_make_identity(tmp_path / "state") == made
    assert len(made.public) == 40 and made.secret.decode() not in repr(made)
    assert os.listdir(tmp_path / "state") == [keys.IDENTITY_FILE]


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.load_or_make_identity(tmp_path)
    (tmp_path / keys.IDENTITY_FILE).chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640.*chmod 600"):
        keys.load_or_make_identity(tmp_path)


@pytest.mark.parametrize("text", ["", "p2ptrain identity 1\n", "swap", "cut"])
def test_a_damaged_identity_is_refused(tmp_path: Path, text: str) -> None:
    made = keys.load_or_make_identity(tmp_path)
    path = tmp_path / keys.IDENTITY_FILE
    good = path.read_text()
    other = zmq.curve_keypair()[0].decode()
    path.write_text({"swap": good.replace(made.public.decode(), other), "cut": good[:-5]}.get(text, text))
    with pytest.raises(UserError, match=r"damaged.*delete"):
        keys.load_or_make_identity(tmp_path)


def test_a_state_directory_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--state"):
        keys.load_or_make_identity(tmp_path / "file")


def test_join_codes() -> None:
    group = keys.new_group()
    text = str(group)
    assert len(text) == 34 and keys.read_code(text) == group
    sloppy = text.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert keys.read_code(f"  {sloppy}\n") == group
    assert group.code.hex() not in repr(group)
    assert str(OPEN_GROUP) == "open" and OPEN_GROUP.is_open and not group.is_open


@pytest.mark.parametrize(
    "pasted",
    [
        "\ufeff{}\r\n",
        "\u201c{}\u201d",
        "`{}`.",
        "\u200b{}\u200b",
        "{}\n{}\n",
        "{}{}",
        "({})",
        "{}\x00",
        "\u00a0{}\u3000",
    ],
)
def test_a_join_code_as_it_is_pasted(pasted: str) -> None:
    text = str(keys.new_group())
    for form in (text, text.replace("-", "\u2212"), text.replace("-", "\u00ad"), text.replace("-", "  ")):
        assert str(keys.read_code(pasted.format(form, form))) == text
    full_width = "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in text)
    assert str(keys.read_code(full_width)) == text


def test_two_codes_are_none() -> None:
    with pytest.raises(UserError, match="56 letters and digits instead of 28"):
        keys.read_code(f"{keys.new_group()} {keys.new_group()}")


def test_a_mistyped_join_code_is_told() -> None:
    text = str(keys.new_group())
    wrong = ("0" if text[0] != "0" else "1") + text[1:]
    with pytest.raises(UserError, match="mistyped"):
        keys.read_code(wrong)
    with pytest.raises(UserError, match="27 letters and digits instead of 28"):
        keys.read_code(text[:-1])
    with pytest.raises(UserError, match="'U'"):
        keys.read_code("u" + text[1:])


def test_what_follows_from_a_code_is_apart_and_stays() -> None:
    group, other = Group(b"0123456789abcdef"), Group(b"0123456789abcdeg")
    derived = [group.tag, group.server_secret, group.server_public, group.proof_key]
    assert len({str(each) for each in [*derived, other.tag, other.server_secret, other.proof_key]}) == 7
    assert group.tag == FROZEN_TAG and group.server_public == FROZEN_SERVER, "an old peer would not find the group"


FROZEN_TAG = "ebbcaraspvahb4on"
FROZEN_SERVER = b"SxMrkEyM$T&is&ZsFcYUW3yf!D5p?.RjAF7R!Q:i"


def test_the_group_is_kept(tmp_path: Path) -> None:
    assert kept.load_group(tmp_path) is None
    for group in (keys.new_group(), OPEN_GROUP, keys.new_group()):
        kept.save_kept(tmp_path, KeptGroup(group))
        assert kept.load_group(tmp_path) == group
        assert (tmp_path / kept.GROUP_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / kept.GROUP_FILE).write_text("ABCD")
    with pytest.raises(UserError, match=r"damaged.*join the group again"):
        kept.load_group(tmp_path)
