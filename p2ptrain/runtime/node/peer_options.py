"""What a person says of the peer on this device: its data, its job, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from p2ptrain.config import Job
from p2ptrain.errors import UserError

MAX_NAME = 64
"""Characters: everybody is told it all the time, and refuses what is longer than a message has room for."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What the person at this device asked for. Defaults are the command line's, but for ``linger_s``."""

    data: str = ""
    """The own samples, such as ``images:photos/``; "" = none."""
    name: str = ""
    """What others see; "" = the host name."""
    job: Job | None = None
    """None: it comes from the group, or is the one that is kept here."""
    init: Path | str | None = None
    """The checkpoint that the job names by its hash."""
    shard: str = ""
    dirichlet: float = 0.0
    classes: tuple[str, ...] = ()
    """Train only on samples of these classes, and wish for them."""
    strict: bool = False
    """End at a file that can't be read; else such files are left out, and counted."""
    flops_per_s: float | None = None
    """None = measured before the start; 0 = not known."""
    memory_bytes: int = 0
    link_bytes_per_s: float = 0.0
    """What this device can send and receive; 0 = not known."""
    num_threads: int = 0
    """CPU threads to train with; 0 = all cores."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""
    allow_user_code: str = ""
    remote_stop: bool = True
    """Whether this peer ends when a member asks the group to stop."""
    linger_s: float = 0.0
    """How long to go on serving after the job is done, and its model written."""
    out: Path | str | None = None
    """Where the model goes when the group is done; None = into the state directory."""
    keep_model: bool = True
    """Whether it is written at all."""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME:
            raise UserError(f"the name {self.name[:24]}... is longer than {MAX_NAME} characters: give a shorter --name")
