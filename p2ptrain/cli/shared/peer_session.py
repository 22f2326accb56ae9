"""What ``p2ptrain peer`` does while the peer runs: tells the person, and ends it well.

Invariant: never imports torch; every end of the peer leaves through one place, with its goodbye said.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from p2ptrain import api
from p2ptrain.cli.shared.at_the_door import AtTheDoor
from p2ptrain.cli.shared.log_file import LogFile
from p2ptrain.cli.shared.options import page_lines
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.learning.profiling.allocator import keep_for_messages
from p2ptrain.loggers import Logger, TensorBoard, find_logger
from p2ptrain.modes.registry import mode_of
from p2ptrain.net.group.kept import join_group
from p2ptrain.net.interfaces import listening_hosts, place, try_to_bind
from p2ptrain.net.keys import Group
from p2ptrain.protocol.machine import Note
from p2ptrain.runtime import new_code
from p2ptrain.runtime.node import journal
from p2ptrain.runtime.node.journal import Line
from p2ptrain.runtime.node.node import NetworkConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.node.peer_options import PeerOptions
from p2ptrain.runtime.outlet import Aside
from p2ptrain.runtime.peer.peer import Peer
from p2ptrain.runtime.store.state_dir import StateDir
from p2ptrain.ui import messages_for_people
from p2ptrain.web.view import View
from p2ptrain.words import clean, duration

WAIT_CHECK_S = 0.5
WAIT_TOLD_S = 4.0
"""A wait that is longer than this is told, and told again each time it has become so many times longer."""
WAIT_AGAIN = 8.0
KINDS = {
    "round": "round",
    "gossip": "round",
    "fetching-blocks": "round",
    "plan-adopted": "plan",
    **dict.fromkeys(("joined", "goes-on", "let-in", "done"), "good"),
    **dict.fromkeys(("failed", "goes-back", "gives-way", "goes-on-alone", "trainer-failed", "trainer-hangs"), "bad"),
}
"""Of the page's events, by the kind of the journal's line: what comes every round, ...; all others are notes."""
SET_ASIDE = "before-fresh"


def prepare_state(state: Path, *, fresh: bool) -> None:
    """Say now if the directory can't be used. ``fresh`` sets its jobs aside, where the next ``fresh`` deletes them."""
    directory = StateDir(state)
    try:
        jobs = directory.jobs() if fresh else ()
        if jobs:
            aside = state / SET_ASIDE
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(mode=0o700)
            for job in jobs:
                (state / job).rename(aside / job)
    except OSError as error:  # of another user, as after a start with sudo
        raise UserError(
            f"--fresh: {error.filename or state} can't be set aside ({error.strerror or error}): check whose it is, "
            "or choose another --state"
        ) from None
    finally:
        directory.close()


def check_ports(network: NetworkConfig) -> None:
    """Say now if the port asked for, or the next, is taken; binding says it again, but only after the measurement."""
    for port in (network.port, network.port + 1) if network.port else ():
        for host in listening_hosts(network.interfaces):
            if why := try_to_bind(host, port):
                raise UserError(
                    f"--port {network.port}: can't listen on {place(host)}, port {port} ({why}): stop "
                    "what runs there, or choose another (two ports are needed, this one and the next)"
                )


def loggers_of(tensorboard: Path | None, names: Sequence[str]) -> list[Callable[[], Logger]]:
    """What is told the figures beside the own file. Raises ``UserError``."""
    found: list[Callable[[], Logger]] = [find_logger(name) for name in names]
    if tensorboard is not None:
        try:
            tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--tensorboard {tensorboard}: can't be made ({error.strerror or error})") from None
        found.append(partial(TensorBoard, tensorboard))
    return found


def run(
    group: Group,
    options: PeerOptions,
    network: NetworkConfig,
    state: Path,
    loggers: Sequence[Callable[[], Logger]] = (),
    log: LogFile | None = None,
    *,
    keep_group: bool,
    quiet: bool,
    as_json: bool,
    page: tuple[str, int] | None = None,
) -> None:
    """Run the peer to its end; ``page``: address and port to serve the page at. Raises ``UserError``."""
    keep_for_messages()
    session = _Session(options, state, log, quiet=quiet, as_json=as_json)

    def started(node: PeerNode) -> None:
        if keep_group:
            join_group(state, node.group)
        session.started(node)

    async def main() -> None:
        session.catch_signals()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(session.close)
            if page is not None:
                server = await stack.enter_async_context(api.serving_page(session.view, *page, session.page_failed))
                session.tell_page(server.links())
            await api.run_peer(
                group,
                options,
                network=network,
                state_dir=state,
                until=session.until,
                on_start=started,
                on_line=session.heard,
                loggers=loggers,
            )

    try:
        asyncio.run(main())
        session.ended(state)
    except P2PTrainError as error:
        session.log_only(f"ended: {error}")
        raise
    finally:
        if log is not None:
            log.close()


class _Session:
    """Hears the journal and watches what the peer waits for."""

    def __init__(
        self, options: PeerOptions, state: Path, log: LogFile | None = None, *, quiet: bool, as_json: bool
    ) -> None:
        self.until = asyncio.Event()
        self._options = options
        self._log = log
        self._quiet = quiet
        self._as_json = as_json
        self._node: PeerNode | None = None
        self._num_signals = 0
        self._is_stopped = False
        """A member has asked the group to stop, and this peer follows."""
        self._told_at = 0.0
        self._told_lost = self._told_unwritten = 0
        self._watching: asyncio.Task[None] | None = None
        self._pace = RoundPace()
        self._early: list[Line] = []
        """Written before the node could be asked about them."""
        self.view = View(
            self._look,
            own=lambda: node.identity.peer if (node := self._node) else None,
            tells_itself=True,
            ask=self._ask,
        )
        self._door = AtTheDoor(self._say, lambda peer: new_code.approve(state, (peer,)))
        self._asks_person = not quiet and not as_json and AtTheDoor.is_possible()

    # --- signals ---

    def catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if name not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(name) is signal.SIG_IGN:
                continue  # `nohup`: a terminal that closes is no reason to stop
            try:
                loop.add_signal_handler(name, self._signalled)
            except (NotImplementedError, RuntimeError, ValueError):  # Windows; a thread of a test
                with contextlib.suppress(ValueError):
                    signal.signal(name, lambda *_: loop.call_soon_threadsafe(self._signalled))

    def _signalled(self) -> None:
        self._num_signals += 1
        if self._num_signals > 1:
            os._exit(130)  # the trainer dies with this process
        self._say("stopping: handing over and saying goodbye (once more to stop at once)")
        self.until.set()

    # --- what is told ---

    def started(self, node: PeerNode) -> None:
        self._node = node
        addresses = ", ".join(address.removeprefix("tcp://") for address in node.addresses()[:4])
        self._say(f"peer     {clean(self._options.name, 40)} ({node.identity.peer}) listens at {addresses}")
        early, self._early = self._early, []
        for line in early:
            self._tell(line)
        if self._watching is not None:
            self._watching.cancel()  # of the node before, which left its job for another
        self._watching = asyncio.ensure_future(self._watch_waits())

    def page_failed(self, error: BaseException) -> None:
        """A bug, which is no reason to stop training."""
        self._say(f"the page is served no longer ({type(error).__name__}: {error}); training goes on")

    def tell_page(self, links: list[str]) -> None:
        """Said even where little is: nobody can guess the link."""
        if self._as_json:
            for link in links:
                _write(journal.encode(Line(time.time(), "page", {"link": link})).decode())
        else:
            _write("".join(f"{line}\n" for line in page_lines(links)))

    def _ask(self) -> None:
        """Somebody looks at the page: the others are asked what only they know. Answers show in the next look."""
        if self._node is not None and (core := self._core()) is not None:
            self._node.feed(core.ask_status)

    def _look(self) -> api.Status | None:
        core = self._core()
        return api.snapshot_peer(core) if core is not None else None

    def heard(self, line: Line) -> None:
        if self._as_json:
            _write(journal.encode(line).decode())
        if self._node is None:
            self._early.append(line)
        else:
            self._tell(line)

    def close(self) -> None:
        """The peer has ended."""
        self._door.close()

    def ended(self, state: Path) -> None:
        if self._num_signals:
            self._say(f"stopped; what this device has trained stays in {state}: start again to go on")

    def _core(self) -> Peer | None:
        core = self._node.core if self._node else None
        return core if isinstance(core, Peer) else None

    def _tell(self, line: Line) -> None:
        if line.kind == "asks-to-be-let-in" and self._asks_person:
            peer, name, address = (str(line.fields.get(each, "")) for each in ("peer", "name", "address"))
            self._door.asks(PeerId(peer), name, address.removeprefix("tcp://"))
            return
        core = self._core()
        text, after = messages_for_people.tell(line), list[str]()
        if core is not None and core.job is not None:
            own = core.records.own
            plan = core.role.plan if core.role is not None else None
            if line.kind == "plan-adopted" and plan is not None:
                words = mode_of(core.job).words
                self._say_if(words.mode_sentence(plan, core.job), "plan")
                text = words.plan_sentence(plan, core.job, core.own_id)
                after = words.plan_notes(plan, core.job, core.own_id)
            elif line.kind == "training":
                self._pace.begun(time.monotonic())
            elif line.kind == "round":
                rounds = core.job.training.rounds
                left_s = self._pace.left_s(time.monotonic(), rounds - own.round)
                left = duration(max(1, round(left_s))) if left_s is not None else ""
                text = messages_for_people.round_sentence(line.fields, rounds, own.samples_per_s, own.accuracy, left)
            elif line.kind == "validated" and core.role is not None and core.role.ending is not None:
                after = core.role.ending.found()
        if line.kind == "other-job" and self._options.job is None:
            text = (
                f"{line.fields.get('peer', '')} is in this group with another job ({line.fields.get('theirs', '')}): "
                "this device takes that one when nobody else has its own any more, or when it is done"
            )
        if line.kind == "stop-asked":
            self._is_stopped = line.fields.get("answer") == "ends"
        if line.kind == "done":
            goes_on = f"goes on serving: {duration(self._options.linger_s)}; Ctrl-C when you have the model"
            if self._is_stopped:
                goes_on = "leaves when the model is written and the others have theirs"
            text = f"done. Next, on any device: p2ptrain harvest -o global.safetensors   (this peer {goes_on})"
        for each in [text, *after]:
            self._say_if(each, KINDS.get(line.kind, "note"))

    def _say_if(self, text: str | None, kind: str) -> None:
        if text:
            self._told_at = time.monotonic()
            self._say(self._with_names(text), kind)

    def _with_names(self, text: str) -> str:
        """Peers by their names, as far as those are known by now."""
        core = self._core()
        if core is None:
            return text
        return re.sub(r"\b[a-z2-7]{16}\b", lambda match: clean(core.group.name_of(PeerId(match[0])), 40), text)

    def log_only(self, text: str) -> None:
        """Into the log file alone."""
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _say(self, text: str, kind: str = "note") -> None:
        self.view.say(text, kind)
        self.log_only(text)
        if not self._quiet and not self._as_json:
            _write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def _look_at_output(self) -> None:
        """What nobody could read is told in the journal: once, and again when it is twice as much.

        So the line about it, which is printed too, brings no next one.
        """
        if self._node is not None and self._node.journal.lost >= max(1, 2 * self._told_unwritten):
            self._told_unwritten = self._node.journal.lost
            self._say(f"the journal in the state directory can't be written; lines lost so far: {self._told_unwritten}")
        lost = sys.stdout.lost if isinstance(sys.stdout, Aside) else 0
        if self._node is not None and lost >= max(1, 2 * self._told_lost):
            self._told_lost = lost
            self._node.note(Note("output-lost", (("lines", lost),)))

    async def _watch_waits(self) -> None:
        """Nothing waits in silence: say what a wait is for once it lasts, and again when it has grown much longer."""
        words, since, tell_at = "", time.monotonic(), WAIT_TOLD_S
        while True:
            await asyncio.sleep(WAIT_CHECK_S)
            self._look_at_output()
            core = self._core()
            waiting = core.records.own.waiting_for if core else ""
            stem = re.sub(r"[0-9.]+", "", waiting)
            if stem != words or self._told_at > since:
                words, since, tell_at = stem, time.monotonic(), WAIT_TOLD_S
            waited = time.monotonic() - since
            if waiting and waited >= tell_at:
                self._say(f"waiting for {self._with_names(clean(waiting, 256))}  ({waited:.0f} s so far)")
                tell_at = waited * WAIT_AGAIN


class RoundPace:
    """How long what is left will take, from the last few rounds."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=4)

    def begun(self, now: float) -> None:
        """Training begins, or begins anew."""
        self._ends.clear()
        self._ends.append(now)

    def left_s(self, now: float, rounds_left: int) -> float | None:
        """At the end of a round; None where nothing is left, or nothing known."""
        self._ends.append(now)
        if rounds_left <= 0 or len(self._ends) < 2:
            return None
        return rounds_left * (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def _write(text: str) -> None:
    """Output that can't be written must not stop a peer."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()
