"""A liar's mouth: before each of its honest messages go the same ones with one field changed, field by field.

The fields and their bounds are the schema's, so a kind or a field is lied about from the day that it is there. A number
is at its bounds, at those that have been anybody's, and one beside the truth; an id is another member's, or nobody's; a
job, a plan or a blob is unknown; bytes are noise, none, or many; of a list there is nothing, the same twice, or one
made up. What the liar may sign it signs, so that what is behind its signature is tried as well.
"""

from __future__ import annotations

import dataclasses
import types
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from any_values import LIMITS, scalars
from liar import made_by, statements
from peer_group import Room

from p2ptrain.errors import LocalError
from p2ptrain.ids import PeerId
from p2ptrain.simulation.device import Device
from p2ptrain.simulation.names import key
from p2ptrain.wire import messages as m
from p2ptrain.wire.schema import Bound, RawBytes

FORGED = ("peer", "key", "signature", "word", "trainer")
"""With another one of these, it speaks for somebody else: then it can sign nothing."""
MANY_BYTES = 1 << 20
A_TIME = 16
"""Lies before one honest message."""


def lies_of(value: Any, hint: Any) -> Iterator[tuple[str, Any]]:
    """What else may stand in the place of a value of this type, each with the field that it is about."""
    bound: Bound | None = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
    if get_origin(hint) is Annotated:
        yield from lies_of(value, hint)
    elif dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        for field in dataclasses.fields(hint):
            for path, lie in lies_of(getattr(value, field.name), hints[field.name]):
                yield f"{field.name}.{path}".rstrip("."), dataclasses.replace(value, **{field.name: lie})
    elif get_origin(hint) is Literal:
        yield from (("", each) for each in get_args(hint) if each != value)
    elif get_origin(hint) in (Union, types.UnionType) and hint != RawBytes:
        inner = next(each for each in get_args(hint) if each is not type(None))
        yield from [("", None)] if value is not None else []
        yield from lies_of(least(inner) if value is None else value, inner)
    elif get_origin(hint) is tuple:
        low, high = (bound.low, bound.high) if bound else (0, 1024)
        inner = get_args(hint)[0]
        first = value[0] if value else least(inner)
        yield from [("none", ())] if value and not low else []
        yield from [("twice", (*value, first))] if value and len(value) < high else []
        yield from [("made-up", (first,))] if not value else []
        for path, lie in lies_of(first, inner):
            yield path, (lie, *value[1:])
    elif hint is bool:
        yield "", not value
    else:
        low, high = (bound.low, bound.high) if bound else (0, 2**63 - 1) if hint is int else (-(2**63), 2**63 - 1)
        found = scalars(bytes if hint == RawBytes else hint, low, high)
        if isinstance(value, bytes) and high > len(value):
            found = [*found, bytes(int(min(high, MANY_BYTES)))]
        if isinstance(value, int | float):
            few = {0, 1, low, high, value - 1, value + 1, *LIMITS[::2]}
            found = [each for each in {*found, *map(type(value), few)} if each in few and low <= each <= high]
        yield from (("", each) for each in found if each != value)


def least(hint: Any) -> Any:
    """A value of the type, made up."""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        bound = next((extra for extra in extras if isinstance(extra, Bound)), None)
        if not dataclasses.is_dataclass(hint) and get_origin(hint) is None and bound is not None:
            return scalars(hint, bound.low, bound.high)[0]
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{field.name: least(hints[field.name]) for field in dataclasses.fields(hint)})  # type: ignore[operator]
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if get_origin(hint) is tuple:
        return ()
    if hint is bool:
        return False
    return scalars(hint, 0, 2**63 - 1)[0]


class Mouth:
    """Of ``liar``. ``told``: by kind, how many lies about it went out; ``whole``: kinds of which all were told.

    ``only``: kinds that it lies about for now. What it says of itself spoils it as a member, so that comes last.
    """

    def __init__(self, room: Room, liar: Device, only: Collection[str]) -> None:
        self.told: Counter[str] = Counter()
        self.whole: set[str] = set()
        self.only = only
        self._room, self._liar = room, liar
        sessions = liar.core.sessions
        self._send = sessions.send
        sessions.send = self._say  # type: ignore[method-assign]

    def say(self, to: Device, message: m.Message) -> None:
        """What the liar would not say by itself, and all lies about it."""
        core = self._liar.core
        for _ in range(1 + len(self._lies(message)) // A_TIME):
            effects = core.sessions.send(to.id, message, core.job_id, core.epoch, self._room.network.now)
            self._room.perform(self._liar, effects)

    def _lies(self, message: m.Message) -> list[tuple[str, m.Message]]:
        return list(lies_of(message, type(message)))

    def _say(self, to: PeerId, message: m.Message, job: str, epoch: int, now: float) -> list[Any]:
        effects: list[Any] = []
        kind = message.KIND
        if kind in self.only and kind not in self.whole:
            lies = self._lies(message)
            for path, lie in lies[self.told[kind] : self.told[kind] + A_TIME]:
                self.told[kind] += 1
                try:
                    effects += self._send(to, self._signed(lie, path), job, epoch, now)
                except LocalError:
                    continue  # more than a frame holds
            if self.told[kind] >= len(lies):
                self.whole.add(kind)
        return [*effects, *self._send(to, message, job, epoch, now)]

    def _signed(self, message: m.Message, path: str) -> m.Message:
        """As its own word, where it can be that."""
        number, core = self._liar.number, self._liar.core
        said = statements(number)
        if path.rpartition(".")[2] in FORGED:
            return message
        if isinstance(message, m.Records):
            mine = tuple(self._signed_record(each) if each.key == key(number) else each for each in message.records)
            return m.Records(mine)
        if isinstance(message, m.Ping | m.Ack | m.PingRequest):
            told = tuple(
                dataclasses.replace(each, word=said.presence(each.incarnation, left=each.state == "left"))
                if each.peer == core.own_id
                else each
                for each in message.rumours
            )
            return dataclasses.replace(message, rumours=told)
        if isinstance(message, m.ReplicaOffer):
            return m.ReplicaOffer(self._made(message.holding))
        if isinstance(message, m.HeadFitCall):
            return dataclasses.replace(message, holdings=tuple(map(self._made, message.holdings)))
        return message

    def _signed_record(self, record: m.Record) -> m.Record:
        refs = tuple(map(self._made, record.holdings))
        return statements(self._liar.number).signed(dataclasses.replace(record, holdings=refs))

    def _made(self, ref: m.SnapshotRef) -> m.SnapshotRef:
        return made_by(self._room, self._liar, ref) if ref.trainer == self._liar.id else ref
