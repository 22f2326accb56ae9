"""Keys on disk and what is derived from a join code.

Invariant: what leaves this module under a file name is whole, ours, and readable by its owner only; a key file that
others may have read is refused, not used.

Two secrets make a peer:

- its *identity*, a CURVE key pair made at first start. The public half is the peer (its id is a short form of it).
- the group's *join code*, 128 random bits. From it come the tag that mDNS shows, the CURVE server key that all
  listening sockets of the group share (a stranger can't finish the CURVE handshake, so no byte of theirs is parsed),
  and the key of the proofs that peers exchange when they meet. Each is a hash under its own label: none gives away the
  code or another. Because the server key is shared, a link is private against strangers, not against group members;
  who the *client* of a link is can't be faked by anybody, and that is what peers are known by.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from p2ptrain.errors import UserError
from p2ptrain.ids import GroupTag, PeerId, peer_id
from p2ptrain.net.private_files import read_private, write_private

IDENTITY_FILE = "identity.key"

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base32: no I, L, O, U
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
_SECRET_BYTES = 16
_CHECK_BITS = 12
_NUM_SYMBOLS = (_SECRET_BYTES * 8 + _CHECK_BITS) // 5  # 28: seven groups of four
_OPEN = "open"


@dataclass(frozen=True, slots=True)
class Identity:
    """A CURVE key pair, both halves Z85 (40 bytes)."""

    public: bytes
    secret: bytes = field(repr=False)

    @property
    def peer(self) -> PeerId:
        return peer_id(self.public)


@dataclass(frozen=True, slots=True)
class Group:
    """A join code and what follows from it.

    ``approves``: the code alone lets nobody in; its founder admits each device (``net/group``).
    """

    code: bytes = field(repr=False)
    is_open: bool = False
    approves: bool = False

    @property
    def tag(self) -> GroupTag:
        """What mDNS shows: 80 bits that only tell holders of the code that this is their group."""
        return GroupTag(base64.b32encode(self._derive(b"group-tag", 10)).decode().lower())

    @property
    def server_secret(self) -> bytes:
        """Secret half (Z85) of the CURVE key pair of every listening socket of the group."""
        return z85.encode(self._derive(b"group-server", 32))

    @property
    def server_public(self) -> bytes:
        return zmq.curve_public(self.server_secret)

    @property
    def proof_key(self) -> bytes:
        return self._derive(b"group-proof", 32)

    def _derive(self, label: bytes, num_bytes: int) -> bytes:
        label += b"-approved" if self.approves else b""
        return hashlib.blake2b(label, key=self.code, person=b"p2ptrain-group", digest_size=num_bytes).digest()

    def __str__(self) -> str:
        """The join code to read aloud, ``ABCD-EFGH-...``; "open" for a group without one."""
        if self.is_open:
            return _OPEN
        number = int.from_bytes(self.code) << _CHECK_BITS | _checksum(self.code, approves=self.approves)
        symbols = "".join(_ALPHABET[number >> 5 * i & 31] for i in reversed(range(_NUM_SYMBOLS)))
        return "-".join(symbols[i : i + 4] for i in range(0, _NUM_SYMBOLS, 4))


OPEN_GROUP = Group(b"p2ptrain is open", is_open=True)
"""The group of ``--open``: everybody knows its code."""


def new_group() -> Group:
    return Group(secrets.token_bytes(_SECRET_BYTES))


def read_code(text: str) -> Group:
    """The group of a typed or pasted join code: letters and digits count, in any case; O is 0, I and L are 1.

    What stands around and between them does not, seen or unseen, nor that it was pasted twice.
    """
    text = unicodedata.normalize("NFKC", text)
    symbols = "".join(c for c in text if unicodedata.category(c)[0] not in "CPSZ").upper().translate(_READ_AS)
    if len(symbols) > _NUM_SYMBOLS and symbols == symbols[:_NUM_SYMBOLS] * (len(symbols) // _NUM_SYMBOLS):
        symbols = symbols[:_NUM_SYMBOLS]
    ask = "check it against the one that the first peer printed"
    odd = sorted(set(symbols) - set(_ALPHABET))
    if odd:
        raise UserError(f"the join code has {odd[0]!r} in it, which no code has: {ask}")
    if len(symbols) != _NUM_SYMBOLS:
        raise UserError(f"the join code has {len(symbols)} letters and digits instead of {_NUM_SYMBOLS}: {ask}")
    number = 0
    for symbol in symbols:
        number = number << 5 | _ALPHABET.index(symbol)
    code = (number >> _CHECK_BITS).to_bytes(_SECRET_BYTES)
    for approves in (False, True):
        if number & (1 << _CHECK_BITS) - 1 == _checksum(code, approves=approves):
            return Group(code, approves=approves)
    raise UserError(f"the join code is mistyped (its check digits don't match): {ask}")


def _checksum(code: bytes, *, approves: bool) -> int:
    """The check digits also tell the two kinds of codes apart."""
    person = b"p2ptrain-approve" if approves else b"p2ptrain-check"
    digest = hashlib.blake2b(code, person=person, digest_size=2).digest()
    return int.from_bytes(digest) >> 16 - _CHECK_BITS


# --- files ------------------------------------------------------------------------------------------------------------


def new_identity() -> Identity:
    """A key pair that is kept nowhere: for a visit."""
    return Identity(*zmq.curve_keypair())


def load_or_make_identity(state_dir: Path) -> Identity:
    """The identity kept in ``state_dir``, made there if it has none."""
    path = state_dir / IDENTITY_FILE
    for _ in range(2):  # the second time another process was faster to make it
        text = read_private(path)
        if text is not None:
            return _parse_identity(text, path)
        public, secret = zmq.curve_keypair()
        text = f"p2ptrain identity 1\npublic {public.decode()}\nsecret {secret.decode()}\n"
        with contextlib.suppress(FileExistsError):
            write_private(path, text, replace=False)
            return Identity(public, secret)
    raise UserError(f"{path}: another process keeps making and removing it; stop that, then start again")


def _parse_identity(text: str, path: Path) -> Identity:
    match = re.fullmatch(r"p2ptrain identity 1\npublic (\S{40})\nsecret (\S{40})\n", text, re.ASCII)
    damaged = UserError(f"{path} is damaged: restore it from a backup, or delete it (this peer then gets a new id)")
    if not match:
        raise damaged
    public, secret = (half.encode() for half in match.groups())
    try:
        matches = zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        matches = False
    if not matches:
        raise damaged
    return Identity(public, secret)
