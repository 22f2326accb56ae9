"""What others say of a peer, and what of it only that peer's own word shows.

Invariant: that a peer left, and that it ever had an incarnation that is not known here, is believed if the peer itself
signed it, and not otherwise. So nobody can end another's membership, or set its counter, by saying so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from p2ptrain.ids import PeerId
from p2ptrain.protocol.signing import Statements
from p2ptrain.wire.messages import Rumour


class Words:
    """``key_of``: the public key of a peer whose session or record is here. ``refused``: here is counted what is not
    believed. Nobody is blamed for it."""

    def __init__(
        self,
        own_id: PeerId,
        statements: Statements,
        key_of: Callable[[PeerId], bytes | None],
        refused: Counter[str],
    ) -> None:
        self._refused = refused
        self._own_id = own_id
        self._statements = statements
        self._key_of = key_of

    def own(self, incarnation: int, *, left: bool = False) -> Rumour:
        """What we say of ourselves."""
        word = self._statements.presence(incarnation, left=left)
        return Rumour(self._own_id, "left" if left else "alive", incarnation, word)

    def is_believed(self, rumour: Rumour, known: Rumour | None) -> bool:
        """Whether it says no more than ``known`` and an accusation, or has the peer's own word for the rest."""
        says_more = known is None or rumour.incarnation > known.incarnation
        if not says_more and rumour.state != "left":
            return True
        key = self._key_of(rumour.peer)
        left = rumour.state == "left"
        if key is not None and self._statements.was_said(key, rumour.incarnation, rumour.word, left=left):
            return True
        if key is not None and rumour.word:
            self._refused["rumour-unsigned"] += 1
        return False
