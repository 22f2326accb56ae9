"""Carries a group's notices of new codes to devices that slept meanwhile, and still listen under a code of before.

Nobody listens under a former code for them: that would be a door for whoever was removed. They are visited, where mDNS
shows the tag of a former code, and at addresses that were known before. What is said there is the notice alone, and it
is of use to those that stay only.

Invariant: bounded, whoever shows how many addresses: ``MAX_KNOWN`` of them, ``MAX_AT_ONCE`` visits at a time, of
``VISIT_S`` each, and the same one again after ``AGAIN_S`` at first and ``MAX_AGAIN_S`` at last.

An address: --seen--> due --visited--> due again, later each time; one too many --> forgotten
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import zmq
import zmq.asyncio

from p2ptrain.ids import GroupTag
from p2ptrain.net.group.kept import Former
from p2ptrain.net.keys import Identity
from p2ptrain.wire.addresses import make_address, split_address

LOOK_S = 1.0
VISIT_S = 8.0
LINGER_MS = 2_000
AGAIN_S, MAX_AGAIN_S = 10.0, 600.0
MAX_AT_ONCE = 8
MAX_KNOWN = 256


@dataclass(slots=True)
class _Visit:
    due: float
    again_s: float = AGAIN_S


class Courier:
    """``former``: what this device knows of its group's earlier codes. ``on_given`` hears where a notice was taken."""

    def __init__(
        self,
        identity: Identity,
        former: Sequence[Former],
        on_given: Callable[[str], None] = lambda address: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._former = {each.group.tag: each for each in former}
        self._on_given = on_given
        self._clock = clock
        self._visits: OrderedDict[tuple[GroupTag, str], _Visit] = OrderedDict()
        self._context: zmq.asyncio.Context | None = None

    def by_tag(self) -> dict[GroupTag, Callable[[str], None]]:
        """Whom to tell of an address where mDNS shows a former code, by that one's tag."""
        return {tag: partial(self.seen, tag) for tag in self._former}

    def seen(self, tag: GroupTag, address: str) -> None:
        """Somebody listens at ``address`` under the code of ``tag``, as mDNS shows."""
        if tag in self._former and (tag, address) not in self._visits:
            self._visits[tag, address] = _Visit(self._clock())
            if len(self._visits) > MAX_KNOWN:
                self._visits.popitem(last=False)

    def known(self, addresses: Iterable[str]) -> None:
        """A member was there once, under any of the codes."""
        for address in addresses:
            for tag in reversed(self._former):
                self.seen(tag, address)

    async def run(self, is_here: Callable[[str], bool] = lambda address: False) -> None:
        """Visit, until cancelled; not at addresses that lead to a member that ``is_here`` already."""
        try:
            while True:
                now = self._clock()
                due = [(key, each) for key, each in self._visits.items() if each.due <= now and not is_here(key[1])]
                chosen = due[:MAX_AT_ONCE]
                for _, each in chosen:
                    each.due, each.again_s = now + each.again_s, min(2 * each.again_s, MAX_AGAIN_S)
                await asyncio.gather(*(self._give(tag, address) for (tag, address), _ in chosen))
                await asyncio.sleep(LOOK_S)
        finally:
            if self._context is not None:
                self._context.destroy(linger=0)
                self._context = None

    async def _give(self, tag: GroupTag, address: str) -> None:
        former, parts = self._former[tag], split_address(address)
        if parts is None:
            return
        if self._context is None:
            self._context = zmq.asyncio.Context()
        try:
            dealer = self._context.socket(zmq.DEALER)
        except zmq.ZMQError:  # none left: it is tried again
            return
        try:
            dealer.ipv6 = True
            dealer.set(zmq.IMMEDIATE, 1)  # nothing is sent before the other side has proved to have that code
            dealer.set(zmq.ROUTING_ID, b"c" + os.urandom(15))
            dealer.curve_publickey, dealer.curve_secretkey = self._identity.public, self._identity.secret
            dealer.curve_serverkey = former.group.server_public
            dealer.connect(make_address(*parts))
            async with asyncio.timeout(VISIT_S):
                await dealer.send(former.notice)
            self._on_given(address)
        except (TimeoutError, zmq.ZMQError):
            return
        finally:
            dealer.close(linger=LINGER_MS)
