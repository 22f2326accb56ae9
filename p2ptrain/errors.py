"""Every error p2ptrain raises on purpose. The tree says whose fault it is:

    P2PTrainError
    ├── UserError            what a person gave us is wrong; one line, exit code 2
    │   ├── JobError         a job file or a model named in it
    │   ├── DataError        a data set, a file in it, or how it fits the job
    │   ├── NobodyError      no peer of the group answers
    │   └── NotCoveredError  a harvest misses parts of the model, or there is nothing to harvest yet
    ├── RemoteError          the other side broke the protocol: counted, maybe dropped, never a crash
    └── LocalError           our own bug: raise and stop

Messages to a person say what was wrong, where (file, key, peer), and what to do next.
"""

from __future__ import annotations


class P2PTrainError(Exception):
    """Base of all errors raised by p2ptrain."""


class UserError(P2PTrainError):
    """Something a person gave us is wrong. The message ends with the next step."""


class JobError(UserError):
    """A job file, or the model it names, can't be used."""


class DataError(UserError):
    """A data set can't be read, or does not fit the job's data contract."""


class NobodyError(UserError):
    """No peer of the group answered in time."""


class NotCoveredError(UserError):
    """A harvest found no copy of some parts, and the message names them; or the group has nothing yet."""


class RemoteError(P2PTrainError):
    """A peer sent something that breaks the protocol. ``reason`` is a short word to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class LocalError(P2PTrainError):
    """A bug of ours: an invariant does not hold."""
