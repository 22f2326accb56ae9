"""Starts a trainer process, talks to it, and makes sure that it does not outlive its node.

Invariant: the trainer dies with its node, however the node dies: on Linux the kernel kills it (``PR_SET_PDEATHSIG``),
elsewhere it sees its socket close at the next step. It is a fresh interpreter, never a fork: torch deadlocks in
forked children (pytorch#17199).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

import psutil

from p2ptrain.core.commands import LENGTHS, MAX_MESSAGE_BYTES, Stop, TrainerFailed, decode, encode
from p2ptrain.errors import UserError
from p2ptrain.learning.profiling.allocator import training_environment
from p2ptrain.modes.registry import commands
from p2ptrain.net.limits import ADVICE, NONE_LEFT
from p2ptrain.runtime.outlet import Outlet
from p2ptrain.runtime.parent import die_with_parent, own_child
from p2ptrain.wire.shared_bytes import SharedBytes

STOP_TIMEOUT_S = 2.0
Take = Callable[[SharedBytes | None], bytes | mmap | SharedBytes]
"""What becomes of a message's raw field that was handed over; None: it could not be."""
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class TrainerProcess:
    """The node's end. ``on_event`` is called in the event loop with everything the trainer says."""

    def __init__(self, on_event: Callable[[object], None], num_threads: int = 1) -> None:
        self._on_event = on_event
        self._num_threads = num_threads
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._known = commands()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process; it says ``Ready`` after it is configured. Raises ``UserError`` if the system has none."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise _not_started(error) from error
        parent = {"OMP_NUM_THREADS": str(self._num_threads), **own_child()}
        command = [sys.executable, "-m", "p2ptrain.runtime.trainer", str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,  # read for ever, so that nothing it prints can hold it up
                    stderr=subprocess.STDOUT,
                    env=os.environ | training_environment() | parent,
                    start_new_session=True,  # a signal to the whole group (Ctrl-C, a service stopped) is the node's
                )
        except OSError as error:
            ours.close()
            raise _not_started(error) from error
        loop = asyncio.get_running_loop()
        self._socket = ours
        for work in (self._write, self._read, self._relay):
            thread = threading.Thread(target=work, args=(ours, loop), name=f"trainer {work.__name__}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of memory or of threads
                await self.stop()
                raise _not_started(OSError(str(error))) from error
            self._threads.append(thread)

    def send(self, message: object) -> None:
        """Queue a command. The queue is bounded by the protocol: one large command is under way at a time."""
        self._outbox.put(message)

    def cpu_s(self) -> float | None:
        """Processor time that it has used so far; None where that is not known."""
        try:
            times = psutil.Process(self.pid).cpu_times() if self.pid else None
        except (psutil.Error, OSError):
            return None
        return times.user + times.system if times else None

    async def stop(self) -> None:
        """Ask it to stop, wait a little, then kill it."""
        if self._process is None:
            return
        self._stopping = True
        self.send(Stop())
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        while self._process.poll() is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._outbox.put(None)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, STOP_TIMEOUT_S)
        if self._socket is not None:
            self._socket.close()

    def _write(self, ours: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """A thread: a full pipe must not hold up the node's loop."""
        while (message := self._outbox.get()) is not None:
            try:
                _send(ours, message)
            except OSError:
                return  # the trainer is gone; the reader says so

    def _read(self, ours: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """A thread: a snapshot of many megabytes must not either."""
        with contextlib.suppress(EOFError, OSError, RuntimeError):  # RuntimeError: the loop is closed
            while True:
                loop.call_soon_threadsafe(self._on_event, _receive(ours, self._known, _kept))
        if not self._stopping and self._process is not None:
            status = self._process.wait()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_event, TrainerFailed(_why(status), user_error=False))

    def _relay(self, ours: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """A thread: what it prints goes to our stderr, or nowhere if that does not take it."""
        assert self._process is not None and self._process.stdout is not None
        outlet = Outlet("trainer's words", max_waiting=256)
        with self._process.stdout as words:
            while data := os.read(words.fileno(), 1 << 16):
                text = data.decode("utf-8", "replace")
                outlet.put(functools.partial(_print, text))
        outlet.close()


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _not_started(error: OSError) -> UserError:
    reason = error.strerror or str(error)
    if error.errno in NONE_LEFT:
        return UserError(f"the training process can't be started ({reason}): {ADVICE}")
    return UserError(
        f"the training process can't be started ({reason}): check that {sys.executable} can be run, and how many "
        "processes this user may have (`ulimit -u`)"
    )


def _why(status: int) -> str:
    if status == -signal.SIGKILL:
        return "the trainer was killed (out of memory?): a smaller batch_size or a profile with less memory may help"
    return f"the trainer ended by itself with status {status}; its last words are above"


class NodeGone(Exception):
    """The node closed the trainer's socket. Of its own kind: work may raise any error of connections by itself."""


class NodeLink:
    """The trainer's end: blocking, and polled between training steps. Without its node it raises ``NodeGone``."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._waiting = selectors.DefaultSelector()  # of any number; `select` knows those below 1,024 alone
        self._waiting.register(self._socket, selectors.EVENT_READ)
        self._known = commands()

    def send(self, message: object) -> None:
        try:
            _send(self._socket, message)
        except ConnectionError as error:
            raise NodeGone from error

    def waits_for_one(self, timeout_s: float) -> bool:
        """Whether a command, or the end, comes within so long."""
        return bool(self._waiting.select(timeout_s))

    def receive(self, block: bool) -> object | None:
        """The next command; ``None`` if none waits and ``block`` is false."""
        if not block and not self.waits_for_one(0):
            return None
        try:
            return _receive(self._socket, self._known, _mapped)
        except (EOFError, ConnectionError) as error:
            raise NodeGone from error


def _send(link: socket.socket, message: object) -> None:
    head, tensors = encode(message)
    if isinstance(tensors, SharedBytes):
        link.sendall(head[socket.send_fds(link, [head], [tensors.fd]) :])
        return
    link.sendall(head)
    if len(tensors):
        link.sendall(tensors)


def _receive(link: socket.socket, known: Mapping[str, Any], take: Take) -> object:
    """The next message. Raises ``EOFError`` when the other end is gone."""
    first, files, _, _ = socket.recv_fds(link, LENGTHS.size, 1, _CLOSE_ON_EXEC)
    if not first:
        raise EOFError("the other end is gone")
    head_bytes, tensor_bytes, is_shared = LENGTHS.unpack(first + _exactly(link, LENGTHS.size - len(first)))
    if head_bytes + tensor_bytes > MAX_MESSAGE_BYTES:
        raise EOFError(f"a message of {head_bytes + tensor_bytes} bytes")
    handed_over = SharedBytes(files[0], tensor_bytes) if files else None
    head = _exactly(link, head_bytes)
    return decode(head, take(handed_over) if is_shared else _exactly(link, tensor_bytes), known)


def _kept(handed_over: SharedBytes | None) -> bytes | SharedBytes:
    """In the node, where it came without its file: none was left to open. Then it is as if the disk had refused it."""
    return b"" if handed_over is None else handed_over


def _mapped(handed_over: SharedBytes | None) -> mmap:
    """In the trainer."""
    if handed_over is None:
        raise OSError(errno.EMFILE, f"what the node hands over can't be opened: {ADVICE}")
    return handed_over.private()


def _exactly(link: socket.socket, num_bytes: int) -> bytes:
    if not num_bytes:
        return b""
    parts: list[bytes] = []
    missing = num_bytes
    while missing:
        part = link.recv(missing, socket.MSG_WAITALL)  # all of it, but for a signal in between
        if not part:
            raise EOFError("the other end is gone")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def die_with_node() -> None:
    """End when the node does, and yield the processor to it."""
    die_with_parent()
    with contextlib.suppress(OSError):
        os.nice(5)  # the node must answer pings while we train
    for name in (signal.SIGINT, signal.SIGTERM):  # the node's to handle; it will tell us
        signal.signal(name, signal.SIG_IGN)
