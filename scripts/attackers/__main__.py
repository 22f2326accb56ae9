"""One attacker as a process: ``python -m attackers``, told what to do by a line of JSON on its standard input.

It attacks until its time is over or its standard input closes, takes at most ``share`` of a core, and says on standard
output how often it did what, as JSON. It is never started by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attackers import lies, member, outsider
from attackers.insider import Insider
from p2ptrain.net.keys import read_code

ANNOUNCED_PER_TURN = 100
MEMBER_LIFE_S = 120.0
MEMBER_REST_S = 5.0
ACT_S = 15.0
"""Then an attack that is not through (the machine is busy) is broken off."""
TURNED_AWAY_S = 1.0
"""After which one that was not let in tries again."""


@dataclass(slots=True)
class Setting:
    """``code`` is "" for an outsider, which gets the group's ``tag``, as all in the network see it."""

    role: str
    seconds: float
    share: float
    seed: int
    ports: list[int]
    code: str = ""
    tag: str = ""
    data: str = ""


class Leisure:
    """Keeps this process below a share of a core: what it takes more, the attacked would lack on this machine."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def rest_s(self) -> float:
        """How long to do nothing now."""
        wall, cpu = time.monotonic() - self._wall, time.process_time() - self._cpu
        return min(10.0, max(0.0, cpu / self._share - wall))


def attack_from_outside(setting: Setting, done: Callable[[], bool]) -> Counter[str]:
    told: Counter[str] = Counter()
    rng, leisure, held = random.Random(setting.seed), Leisure(setting.share), outsider.Held()
    announcer = outsider.Announcer(setting.tag, rng)
    while not done():
        for what, act in outsider.ACTS.items():
            told["announcements"] += announcer.announce(ANNOUNCED_PER_TURN)
            port = rng.choice(setting.ports)
            try:
                told[what] += act([port, port + 1], held, rng)
            except OSError:
                told["turned away"] += 1
            time.sleep(leisure.rest_s())
            if done():
                break
    held.close()
    announcer.close()
    return told


async def attack_from_inside(setting: Setting, done: Callable[[], bool]) -> Counter[str]:
    """With a new key for each act: who is banned comes back as somebody else."""
    told: Counter[str] = Counter()
    rng, leisure = random.Random(setting.seed), Leisure(setting.share)
    addresses = [f"127.0.0.1:{port}" for port in setting.ports]
    while not done():
        for what, act in rng.sample(sorted(lies.ACTS.items()), len(lies.ACTS)):
            try:
                async with Insider(read_code(setting.code), addresses, rng) as insider:
                    await asyncio.sleep(0.5)  # the group's records, job and plan are known by then
                    for target in insider.targets():
                        insider.target = target
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(ACT_S):
                                await act(insider)
                        told[what] += 1
                        if done():
                            break
                    await asyncio.sleep(0.2)
                told.update(insider.num_sent)
            except TimeoutError:
                told["turned away"] += 1
                await asyncio.sleep(TURNED_AWAY_S)
            await asyncio.sleep(leisure.rest_s())
            if done():
                break
    return told


async def attack_as_member(setting: Setting, done: Callable[[], bool]) -> Counter[str]:
    """A peer that trains with the others, lies, goes, and comes back as another one."""
    told: Counter[str] = Counter()
    addresses = [f"127.0.0.1:{port}" for port in setting.ports]
    ends = time.monotonic() + setting.seconds
    while not done():
        with tempfile.TemporaryDirectory(prefix="attacker-", ignore_cleanup_errors=True) as folder:
            life_s = min(MEMBER_LIFE_S, max(1.0, ends - time.monotonic()))
            group = read_code(setting.code)
            told += await member.play_along(group, addresses, setting.data, Path(folder), life_s)
        told["lives"] += 1
        await asyncio.sleep(MEMBER_REST_S)
    return told


def main() -> None:
    raw: dict[str, Any] = json.loads(sys.stdin.readline())
    setting = Setting(**raw)
    over = threading.Event()
    ends = time.monotonic() + setting.seconds

    def watch_parent() -> None:
        while sys.stdin.readline():
            pass
        over.set()

    threading.Thread(target=watch_parent, name="parent", daemon=True).start()

    def done() -> bool:
        return over.is_set() or time.monotonic() > ends

    started = time.monotonic()
    told: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        if setting.role == "outsider":
            told = attack_from_outside(setting, done)
        elif setting.role == "insider":
            told = asyncio.run(attack_from_inside(setting, done))
        else:
            told = asyncio.run(attack_as_member(setting, done))
    took = {"cpu_s": time.process_time(), "took_s": time.monotonic() - started}
    print(json.dumps({"told": dict(told), **took}), flush=True)


if __name__ == "__main__":
    main()
