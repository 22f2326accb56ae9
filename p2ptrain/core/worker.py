"""What a trainer process asks of its mode: the side that has torch, data and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2ptrain.config import Job
from p2ptrain.core.commands import Configure


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is given. Data sets and tensors are of types that this layer does not know."""

    job: Job
    configuration: Configure
    data: Any
    """Own training samples, a ``Dataset``; None = none."""
    val: Any
    """Own validation samples; None = none."""
    init: Mapping[str, Any] | None
    """Tensors of the checkpoint that the job starts from."""
    scores: Mapping[str, Any] | None
    """Its attribution of channels to classes, by layer, if it holds any."""
    say: Callable[[object], None]
    """An event, to the node."""


class Worker(Protocol):
    """One peer's training, in one job. It does one thing at a time."""

    @property
    def handlers(self) -> Mapping[type, Callable[[Any], None]]:
        """Commands of this mode, and who carries them out."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is training to do."""
        ...

    def prepare(self) -> Sequence[object]:
        """What takes long before the first plan; events that are said before ``Ready``. Raises ``UserError``."""
        ...

    def max_groups(self) -> int:
        """Into so many class sub-models the job's model can be divided; 0 = not looked."""
        ...

    def work(self) -> None:
        """One training step, or one unit of work."""
        ...

    def snapshot(self) -> None:
        """Hand over what is held now."""
        ...
