"""A code says by itself who made it, and nobody else can say so."""

from __future__ import annotations

from p2ptrain.net.group.founding import Founding, found
from p2ptrain.net.keys import OPEN_GROUP, Group, new_group, new_identity, read_code


def test_a_code_that_was_read_aloud_shows_its_founder() -> None:
    one, other = new_identity(), new_identity()
    founding = found(one.public)
    for approves in (False, True):
        group = founding.group(approves=approves)
        heard = read_code(str(group))
        assert heard == group and heard.approves == approves and founding.made(heard)
    assert founding.peer == one.peer
    assert not Founding(other.public, founding.nonce).made(group)
    assert not Founding(one.public, bytes(32)).made(group)
    assert not Founding(one.public, founding.nonce + b"\0").made(group)
    assert found(one.public).code != found(one.public).code


def test_a_code_of_random_bits_and_none_have_no_founder() -> None:
    founding = found(new_identity().public)
    assert not founding.made(new_group()) and not founding.made(OPEN_GROUP)


def test_the_two_kinds_of_codes_are_never_the_same_group() -> None:
    plain, approved = Group(b"0123456789abcdef"), Group(b"0123456789abcdef", approves=True)
    assert str(plain)[:-2] != str(approved) and plain.tag != approved.tag
    assert plain.server_public != approved.server_public and plain.proof_key != approved.proof_key
