"""The group that a device is in, as it keeps it: the code, who made it, and the codes that it had before.

    group.code:  CODE
                 founder KEY NONCE         who made the code, where that is known
                 admission WORD            the founder's, that this device may be in (groups that admit one by one)
                 former CODE NOTICE        a code before this one, and the founder's notice of what came after it

    group.TAG.code: the same of another group that this device was in, for when it comes back.

Invariant: all of it is one file, so that a device is in the old group or in the new one, whenever it dies. A code that
was left for a newer one is never gone back to. At most ``MAX_FORMER`` of those are kept, the newest. What makes this
device a group's founder is never overwritten.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.net.group.founding import Founding
from p2ptrain.net.keys import OPEN_GROUP, Group, read_code
from p2ptrain.net.private_files import read_private, write_private

GROUP_FILE = "group.code"
MAX_FORMER = 8


@dataclass(frozen=True, slots=True)
class Former:
    """A code that the group had, and the frame of the notice (``NewCode``) that says what came after it."""

    group: Group
    notice: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptGroup:
    group: Group
    founding: Founding | None = None
    admission: bytes = b""
    """The founder's signature; empty where the code alone lets in, or as long as the founder has not admitted it."""
    former: tuple[Former, ...] = ()
    """The newest last."""

    def was(self, group: Group) -> bool:
        """Whether ``group`` is the same one under a code that it had before."""
        return any(each.group == group for each in self.former)

    def followed_by(self, new: KeptGroup, notice: bytes) -> KeptGroup:
        """The same group under its new code."""
        return dataclasses.replace(new, former=(*self.former, Former(self.group, notice))[-MAX_FORMER:])


def load_kept(state_dir: Path) -> KeptGroup | None:
    """The group of this device, if it is in one. Raises ``UserError``."""
    return _load(state_dir / GROUP_FILE)


def _load(path: Path) -> KeptGroup | None:
    text = read_private(path)
    if text is None:
        return None
    try:
        return _parse(text)
    except (UserError, ValueError, binascii.Error) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and join the group again with its code") from error


def save_kept(state_dir: Path, kept: KeptGroup) -> None:
    """In place of what was kept, all of it or nothing. Raises ``UserError``."""
    write_private(state_dir / GROUP_FILE, _text(kept), replace=True)


def _text(kept: KeptGroup) -> str:
    lines = [str(kept.group)]
    if kept.founding is not None:
        lines.append(f"founder {kept.founding.founder.decode()} {kept.founding.nonce.hex()}")
    if kept.admission:
        lines.append(f"admission {kept.admission.hex()}")
    lines += [f"former {each.group} {base64.b64encode(each.notice).decode()}" for each in kept.former]
    return "".join(f"{line}\n" for line in lines)


def load_group(state_dir: Path) -> Group | None:
    """What ``load_kept`` finds, without its history."""
    kept = load_kept(state_dir)
    return kept.group if kept is not None else None


def enter_group(state_dir: Path, new: KeptGroup) -> None:
    """Be in another group from now on; what is known of the one that is left stays known. Raises ``UserError``."""
    left = load_kept(state_dir)
    if left is not None and left != KeptGroup(left.group):
        write_private(_aside(state_dir, left.group), _text(left), replace=True)
    save_kept(state_dir, new)


def join_group(state_dir: Path, group: Group) -> Group:
    """Be in ``group`` from now on, as far as it is known here. The group that it is: under a newer code, maybe.

    Raises ``UserError``.
    """
    kept = load_kept(state_dir)
    if kept is None or not (kept.group == group or kept.was(group)):
        kept = _load(_aside(state_dir, group)) or KeptGroup(group)
        enter_group(state_dir, kept)
    return kept.group


def _aside(state_dir: Path, group: Group) -> Path:
    return state_dir / f"group.{group.tag}.code"


def _parse(text: str) -> KeptGroup:
    first, *rest = text.split("\n")
    kept = KeptGroup(_group(first))
    for line in filter(str.strip, rest):
        match line.split():
            case ["founder", key, nonce]:
                founding = Founding(key.encode("ascii"), bytes.fromhex(nonce))
                if not founding.made(kept.group):
                    raise ValueError("its founder did not make this code")
                kept = dataclasses.replace(kept, founding=founding)
            case ["admission", word]:
                kept = dataclasses.replace(kept, admission=bytes.fromhex(word))
            case ["former", code, notice]:
                former = Former(read_code(code), base64.b64decode(notice, validate=True))
                kept = dataclasses.replace(kept, former=(*kept.former, former)[-MAX_FORMER:])
            case _:
                raise ValueError(f"a line begins with {line[:16]!r}")
    return kept


def _group(text: str) -> Group:
    return OPEN_GROUP if text.strip() == str(OPEN_GROUP) else read_code(text)
