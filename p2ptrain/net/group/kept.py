"""The group that a device is in, as it keeps it: the code, who made it, and the codes that it had before.

    group.code:  CODE
                 founder KEY NONCE         who made the code, where that is known
                 admission WORD            the founder's, that this device may be in (groups that admit one by one)
                 former CODE NOTICE        a code before this one, and the founder's notice of what came after it

Invariant: all of it is one file, so that a device is in the old group or in the new one, whenever it dies. A code that
was left for a newer one is never gone back to. At most ``MAX_FORMER`` of those are kept, the newest.
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
    path = state_dir / GROUP_FILE
    text = read_private(path)
    if text is None:
        return None
    try:
        return _parse(text)
    except (UserError, ValueError, binascii.Error) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and join the group again with its code") from error


def save_kept(state_dir: Path, kept: KeptGroup) -> None:
    """In place of what was kept, all of it or nothing. Raises ``UserError``."""
    lines = [str(kept.group)]
    if kept.founding is not None:
        lines.append(f"founder {kept.founding.founder.decode()} {kept.founding.nonce.hex()}")
    if kept.admission:
        lines.append(f"admission {kept.admission.hex()}")
    lines += [f"former {each.group} {base64.b64encode(each.notice).decode()}" for each in kept.former]
    write_private(state_dir / GROUP_FILE, "".join(f"{line}\n" for line in lines), replace=True)


def load_group(state_dir: Path) -> Group | None:
    """What ``load_kept`` finds, without its history."""
    kept = load_kept(state_dir)
    return kept.group if kept is not None else None


def join_group(state_dir: Path, group: Group) -> Group:
    """Be in ``group`` from now on; what is known of it stays known. The group that it is: a newer code, maybe."""
    kept = load_kept(state_dir)
    if kept is None or not (kept.group == group or kept.was(group)):
        kept = KeptGroup(group)
        save_kept(state_dir, kept)
    return kept.group


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
