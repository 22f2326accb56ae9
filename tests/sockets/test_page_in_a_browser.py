"""The page in a real browser: it shows a group of three, sees one of them die, and asks nobody outside for anything.

The group is simulated, in virtual time; the server, the page and the browser are real.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import pytest

from p2ptrain import api
from p2ptrain.simulation.room import Room
from p2ptrain.web.server import Limits, PageServer
from p2ptrain.web.view import View

sys.path.append(str(Path(__file__).parents[1] / "unit" / "web"))  # groups of each mode
pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason=f"no browser here: none of {', '.join(browser.NAMES)} (Debian's is chromium)"
)
FIGURES = {"batch_s": 0.5, "planned_batch_s": 0.25, "computes": 0.4, "planned_computes": 0.8}
"""Of one of them."""
HOSTILE = "<script>document.title='taken'</script>"


class Live:
    """A simulated group that is served as a page, by a thread of its own."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._lock = threading.Lock()
        self._view = View(self._look, clock=lambda: 1.7e9 + room.network.now)
        self.link = ""
        self._ready, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Live:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(60)

    def advance(self, seconds: float = 1.0) -> None:
        with self._lock:
            self.room.run(seconds)

    def kill(self) -> str:
        with self._lock:
            device = self.room.on()[-1]
            device.kill()
        return f"device {device.number}"

    def _look(self) -> api.Status:
        with self._lock:
            device = self.room.on()[0]
            found = api.snapshot_peer(device.core)
        records = [dataclasses.replace(r, name=HOSTILE) if r.peer == device.id else r for r in found.records]
        return dataclasses.replace(found, records=tuple(records), figures={device.id: FIGURES})

    async def _serve(self) -> None:
        server = PageServer(self._view, limits=Limits(interval_s=0.1))
        await server.start()
        (self.link,) = server.links()
        self._ready.set()
        while not self._ended:
            await asyncio.sleep(0.05)
        await server.close()


@contextmanager
def opened(mode: str) -> Iterator[tuple[browser.Browser, Live]]:
    from groups import room_of

    program = browser.installed()
    assert program is not None
    with Live(room_of(mode)) as live, browser.Browser(program) as page:
        page.size(1320, 900)
        page.open(live.link)
        page.wait("document.querySelectorAll('#peers .peer').length > 2")
        yield page, live


def test_a_group_of_three_is_shown_and_the_death_of_one() -> None:
    with opened("tasks") as (page, live):
        page.wait("document.getElementById('live').textContent === 'live'")
        assert page.value("document.querySelectorAll('#map .node').length") == 3
        assert page.value("document.querySelectorAll('#map .node.gone').length") == 0
        assert page.value("document.querySelectorAll('#coverage tbody tr').length") == 3
        assert "3 peers here" in page.value("document.getElementById('what').textContent")

        rows = "[...document.querySelectorAll('.compared tr')].map(each => each.textContent)"
        assert page.value(rows) == [
            "plannedmeasured",
            "a batch takes250 ms500 ms",
            "it computes80 %40 %",
            "waits and sends20 %60 %",
        ]

        name = live.kill()
        lost = f"[...document.querySelectorAll('#events li')].some(each => each.textContent.includes('{name} is lost'))"
        page.wait(lost, live.advance)
        page.wait("document.querySelectorAll('#map .node.gone').length === 1", live.advance)
        page.wait("document.getElementById('now').textContent.includes('nobody trains')", live.advance)
        assert "2 peers here" in page.value("document.getElementById('what').textContent")
        page.wait("document.querySelectorAll('#loss .curve').length > 0", live.advance)

        # a name that is a script is a name
        assert HOSTILE in page.value("document.getElementById('peers').textContent")
        assert page.value("document.scripts.length") == 1 and page.value("document.title") == "job · p2ptrain"

        # keys read the curves, a phone has no need to scroll sideways, and all is found by its heading
        page.value("document.querySelector('#loss svg.chart').focus()")
        for kind in ("rawKeyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=kind, key="Home", code="Home", windowsVirtualKeyCode=36)
        page.wait("document.querySelector('#loss .cursor line') !== null")
        page.size(390, 844, phone=True)
        page.wait("document.documentElement.scrollWidth <= 390")
        named = "document.getElementById(each.getAttribute('aria-labelledby')) !== null"
        assert page.value(f"[...document.querySelectorAll('section')].every(each => {named})")

        # nothing was asked of anybody else, and nothing went wrong
        assert {url.startswith(live.link) for url in page.requested()} == {True}
        assert page.complaints() == []
        page.open(live.link[:-2] + "/")
        page.wait("document.body && document.body.textContent.includes('not found')")
