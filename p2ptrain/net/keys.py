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
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from p2ptrain.errors import UserError
from p2ptrain.ids import GroupTag, PeerId, peer_id

IDENTITY_FILE = "identity.key"
GROUP_FILE = "group.code"

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
    """A join code and what follows from it."""

    code: bytes = field(repr=False)
    is_open: bool = False

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
        return hashlib.blake2b(label, key=self.code, person=b"p2ptrain-group", digest_size=num_bytes).digest()

    def __str__(self) -> str:
        """The join code to read aloud, ``ABCD-EFGH-...``; "open" for a group without one."""
        if self.is_open:
            return _OPEN
        number = int.from_bytes(self.code) << _CHECK_BITS | _checksum(self.code)
        symbols = "".join(_ALPHABET[number >> 5 * i & 31] for i in reversed(range(_NUM_SYMBOLS)))
        return "-".join(symbols[i : i + 4] for i in range(0, _NUM_SYMBOLS, 4))


OPEN_GROUP = Group(b"p2ptrain is open", is_open=True)
"""The group of ``--open``: everybody knows its code."""


def new_group() -> Group:
    return Group(secrets.token_bytes(_SECRET_BYTES))


def read_code(text: str) -> Group:
    """The group of a typed join code; spaces, dashes and case don't matter, O is 0, I and L are 1."""
    symbols = re.sub(r"[\s\-\u2010-\u2015_.]", "", text).upper().translate(_READ_AS)
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
    if number & (1 << _CHECK_BITS) - 1 != _checksum(code):
        raise UserError(f"the join code is mistyped (its check digits don't match): {ask}")
    return Group(code)


def _checksum(code: bytes) -> int:
    digest = hashlib.blake2b(code, person=b"p2ptrain-check", digest_size=2).digest()
    return int.from_bytes(digest) >> 16 - _CHECK_BITS


# --- files ------------------------------------------------------------------------------------------------------------


def new_identity() -> Identity:
    """A key pair that is kept nowhere: for a visit."""
    return Identity(*zmq.curve_keypair())


def load_or_make_identity(state_dir: Path) -> Identity:
    """The identity kept in ``state_dir``, made there if it has none."""
    path = state_dir / IDENTITY_FILE
    for _ in range(2):  # the second time another process was faster to make it
        text = _read_private(path)
        if text is not None:
            return _parse_identity(text, path)
        public, secret = zmq.curve_keypair()
        text = f"p2ptrain identity 1\npublic {public.decode()}\nsecret {secret.decode()}\n"
        with contextlib.suppress(FileExistsError):
            _write_private(path, text, replace=False)
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


def save_group(state_dir: Path, group: Group) -> None:
    """Keep ``group`` as the current one."""
    _write_private(state_dir / GROUP_FILE, f"{group}\n", replace=True)


def load_group(state_dir: Path) -> Group | None:
    """The group kept by ``save_group``, if any."""
    path = state_dir / GROUP_FILE
    text = _read_private(path)
    if text is None:
        return None
    if text.strip() == _OPEN:
        return OPEN_GROUP
    try:
        return read_code(text)
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and join the group again with its code") from error


def _read_private(path: Path) -> str | None:
    """The text of a file that only its owner can read; None if there is none."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            raw = file.read(4096)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}): check its owner, or choose another --state"
        ) from error
    if os.name == "posix" and mode & 0o077 and _keeps_modes(path.parent):
        raise UserError(
            f"{path} can be read by other users (mode {mode:04o}): run `chmod 600 {path}`; "
            "if one of them may have copied it, delete it instead, to get a new one"
        )
    return raw.decode("utf-8", "replace")


def _keeps_modes(directory: Path) -> bool:
    """Whether a file here can be kept from others: on USB sticks and some network drives all files look alike."""
    probe = directory / f".mode.{secrets.token_hex(8)}"
    try:
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return os.fstat(fd).st_mode & 0o077 == 0
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)
    except OSError:  # a read-only disk, say: there is no telling
        return True


def _write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write all of the file or nothing, mode 0600. Without ``replace`` an existing one stays: ``FileExistsError``."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            beside.replace(path)
        else:
            _link(beside, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): make room or choose another --state") from error
    finally:
        beside.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        source.replace(path)
