"""How many files and sockets this process may have open, and how it is told when there are none left.

Invariant: nothing here raises but ``check_room``, and what it raises is for a person to mend.
"""

from __future__ import annotations

import errno
import os
from types import ModuleType

from p2ptrain.errors import UserError

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

MAX_OPEN_FILES = 65536
"""More than a node can use; some systems' hard limit is a thousand million."""
NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system says when it has no file or socket left for now. Nothing is broken: later it may have one."""
ADVICE = "close programs that have many files open, or raise the limit of open files (`ulimit -n`) and start again"


def raise_open_files() -> int:
    """Raise this process's limit of open files as far as it may; the limit that holds then (0 = not known)."""
    if resource is None:
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    while soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return int(wanted)
        except (OSError, ValueError):
            wanted //= 2  # some systems allow less than they say
    return int(soft)


def check_room(num_files: int, what: str) -> None:
    """Raise ``UserError`` if ``num_files`` more can't be opened: libzmq aborts where a context can't have its own."""
    opened: list[int] = []
    try:
        for _ in range(num_files):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise UserError(f"{what} can't be opened ({error.strerror}): {ADVICE}") from None
    finally:
        for fd in opened:
            os.close(fd)
