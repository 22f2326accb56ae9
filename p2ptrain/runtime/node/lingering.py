"""What a peer does once its job is done: it writes the model, and serves the others for a while before it goes.

Invariant: whoever is asked for something does not go before ``QUIET_S`` have passed since, while others are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

WRITE_S = 30.0
"""So long who leaves waits for a model that is being written."""
QUIET_S = 10.0
"""Who is done goes when nobody has wanted anything for so long: the others write the model too."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Future[Any]"]
Write = Callable[[], Coroutine[Any, Any, None]]


class Lingering:
    """``others``: whether anybody else is there; ``go``: called at the end, unless another ``start`` came before."""

    def __init__(
        self,
        spawn: Spawn,
        now: Callable[[], float],
        linger_s: float,
        others: Callable[[], bool],
        go: Callable[[], None],
    ) -> None:
        self._spawn, self._now, self._linger_s, self._others, self._go = spawn, now, linger_s, others, go
        self._served_at = 0.0
        self._waiting: asyncio.Future[Any] | None = None
        self._writing: asyncio.Future[Any] | None = None

    @property
    def is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    @property
    def is_awaited(self) -> bool:
        """It ends by itself."""
        return self._waiting is not None and not self._waiting.done()

    def served(self) -> None:
        """Somebody got something from this peer."""
        self._served_at = self._now()

    def hurry(self) -> None:
        """Others are served no longer than they need; what waits already is made short."""
        self._linger_s = 0.0
        if self._waiting is not None and self.is_awaited and not self.is_writing:
            self._waiting.cancel()
            self._waiting = self._spawn(self._linger(None))

    def start(self, write: Write | None) -> None:
        """A peer may be done more than once: a later plan can give it work again."""
        for task in (self._waiting, self._writing):
            if task is not None:
                task.cancel()
        self._waiting = self._spawn(self._linger(write))

    async def written(self) -> None:
        """Wait for the model that is being written, for ``WRITE_S`` at most."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=WRITE_S)

    async def _linger(self, write: Write | None) -> None:
        self.served()
        if write is not None:
            self._writing = self._spawn(write())
            await asyncio.wait([self._writing])
        await asyncio.sleep(self._linger_s)
        while self._others() and (quiet_s := self._now() - self._served_at) < QUIET_S:
            await asyncio.sleep(QUIET_S - quiet_s)
        self._go()
