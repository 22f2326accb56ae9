"""What one peer says in its handshakes, and whether what it hears there was said by a holder of the code.

Invariant: nothing here that is said to one key, or for one nonce, proves anything to another.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from p2ptrain.protocol.session.door import Door
from p2ptrain.protocol.session.guests import Challenge
from p2ptrain.protocol.session.proofs import proof_of
from p2ptrain.wire import codec
from p2ptrain.wire.messages import WIRE_VERSION, Hello, Proof, Refused, Welcome
from p2ptrain.wire.schema import RawBytes

Frames = list[RawBytes]


@dataclass(frozen=True, slots=True)
class Handshake:
    """``told``, in what it says: its own addresses, as others are told them."""

    own_key: bytes
    proof_key: bytes
    bulk_port: int
    software: str
    door: Door

    def hello(self, nonce: bytes, told: tuple[str, ...]) -> Frames:
        return codec.encode(Hello(nonce, told, self.bulk_port, self.software))

    def welcome(self, key: bytes, nonce: bytes, their_nonce: bytes, told: tuple[str, ...]) -> Frames:
        proof = proof_of("welcome", self.proof_key, self.own_key, key, nonce, their_nonce)
        us = told, self.bulk_port, self.software, self.door.name, self.door.own
        return codec.encode(Welcome(nonce, their_nonce, proof, *us))

    def proof(self, key: bytes, welcome: Welcome) -> Frames:
        mac = proof_of("proof", self.proof_key, self.own_key, key, welcome.echo, welcome.nonce)
        return codec.encode(Proof(welcome.nonce, mac, self.door.name, self.door.own))

    def refused(self, version: int) -> Frames:
        """To a peer of another wire version."""
        text = f"this peer speaks wire version {WIRE_VERSION} ({self.software}), yours is {version}"
        return codec.encode(Refused(text[:256], WIRE_VERSION))

    def holds_code(self, key: bytes, said: Welcome | Proof, challenge: Challenge | None = None) -> bool:
        """Whether ``key`` said this to us; of a Proof, in answer to ``challenge``."""
        if isinstance(said, Welcome):
            expected = proof_of("welcome", self.proof_key, key, self.own_key, said.nonce, said.echo)
        else:
            their_nonce = challenge.their_nonce if challenge is not None else b""
            expected = proof_of("proof", self.proof_key, key, self.own_key, their_nonce, said.echo)
        return hmac.compare_digest(expected, said.proof)
