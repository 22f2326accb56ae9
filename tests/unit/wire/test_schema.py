"""Dataclasses to plain maps and back: every wrong type, bound and field is refused, and named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Optional, get_args

import pytest

from p2ptrain.errors import LocalError, RemoteError
from p2ptrain.wire.messages import KINDS, Message
from p2ptrain.wire.schema import Bound, from_plain, to_plain


@dataclass(frozen=True, slots=True)
class Inner:
    word: Annotated[str, Bound(1, 4)]


@dataclass(frozen=True, slots=True)
class Outer:
    number: Annotated[int, Bound(0, 9)]
    ratio: float
    flag: bool
    colour: Literal["red", "blue"]
    raw: Annotated[bytes, Bound(2, 2)]
    inner: Inner
    many: Annotated[tuple[Inner, ...], Bound(0, 2)]
    pair: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Perhaps:
    inner: Inner | None
    number: Annotated[int, Bound(0, 9)] | None = None
    word: Optional[str] = None  # noqa: UP045
    many: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Unclear:
    value: int | str


GOOD = Outer(3, 0.5, True, "red", b"ab", Inner("x"), (Inner("y"), Inner("z")), (1, "one"))


def test_roundtrip() -> None:
    plain = to_plain(GOOD)
    assert plain["many"] == [{"word": "y"}, {"word": "z"}]
    assert from_plain(Outer, plain) == GOOD


def test_an_integer_may_stand_for_a_float() -> None:
    assert from_plain(Outer, {**to_plain(GOOD), "ratio": 1}).ratio == 1.0


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("number", 10, "Outer.number"),
        ("number", -1, "Outer.number"),
        ("number", True, "Outer.number"),
        ("number", 1.0, "Outer.number"),
        ("number", None, "Outer.number"),
        ("ratio", float("nan"), "Outer.ratio"),
        ("ratio", float("inf"), "Outer.ratio"),
        ("ratio", "0.5", "Outer.ratio"),
        ("flag", 1, "Outer.flag"),
        ("colour", "green", "Outer.colour"),
        ("colour", b"red", "Outer.colour"),
        ("colour", 0, "Outer.colour"),
        ("raw", b"a", "Outer.raw"),
        ("raw", "ab", "Outer.raw"),
        ("inner", {"word": ""}, "Inner.word"),
        ("inner", {"word": "x", "more": 1}, "more"),
        ("inner", [], "Outer.inner"),
        ("many", [{"word": "x"}] * 3, "Outer.many"),
        ("many", {"word": "x"}, "Outer.many"),
        ("many", [{"word": "xxxxx"}], "Inner.word"),
        ("pair", [1], "Outer.pair"),
        ("pair", ["one", 1], "Outer.pair[0]"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object, where: str) -> None:
    with pytest.raises(RemoteError) as caught:
        from_plain(Outer, {**to_plain(GOOD), field: value})
    assert caught.value.reason == "schema"
    assert where in str(caught.value)


def test_unhashable_literals_are_refused() -> None:
    with pytest.raises(RemoteError):
        from_plain(Outer, {**to_plain(GOOD), "colour": ["red"]})


@pytest.mark.parametrize("value", [Perhaps(None), Perhaps(Inner("x"), 9, "word", (1, None, 3))])
def test_what_may_be_none_roundtrips(value: Perhaps) -> None:
    assert from_plain(Perhaps, to_plain(value)) == value


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("inner", {"word": ""}, "Inner.word"),
        ("inner", [], "Perhaps.inner"),
        ("inner", False, "Perhaps.inner"),
        ("number", 10, "Perhaps.number"),
        ("number", "1", "Perhaps.number"),
        ("word", 0, "Perhaps.word"),
        ("many", None, "Perhaps.many"),
        ("many", [1, "2"], "Perhaps.many[1]"),
    ],
)
def test_what_may_be_none_may_be_nothing_else(field: str, value: object, where: str) -> None:
    with pytest.raises(RemoteError) as caught:
        from_plain(Perhaps, {**to_plain(Perhaps(None)), field: value})
    assert where in str(caught.value)


def test_a_field_of_two_types_is_our_bug() -> None:
    with pytest.raises(LocalError):
        from_plain(Unclear, {"value": 1})


@pytest.mark.parametrize("plain", [None, [], "x", {}, {"number": 1}])
def test_a_wrong_shape_is_refused(plain: object) -> None:
    with pytest.raises(RemoteError):
        from_plain(Outer, plain)


def test_a_missing_field_is_named() -> None:
    plain = to_plain(GOOD)
    del plain["ratio"]
    with pytest.raises(RemoteError, match="ratio"):
        from_plain(Outer, plain)


def test_what_the_wire_can_not_carry_is_our_bug() -> None:
    with pytest.raises(LocalError):
        to_plain(Inner(word={1, 2}))  # type: ignore[arg-type]


def test_every_message_has_its_own_kind() -> None:
    assert set(KINDS.values()) == set(get_args(Message)) and len(KINDS) == len(set(KINDS.values()))
    assert all(kind == cls.KIND for kind, cls in KINDS.items())
