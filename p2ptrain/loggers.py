"""Where the figures of a training go beside the files of p2ptrain: TensorBoard, or a tracker of your own.

A logger is a class of two methods. One object of it lives in a thread of its own: it is made there, called there and
closed there, so that a tracker that hangs or fails holds up no training. For MLflow, in ``mine.py``:

    import mlflow

    class MLflow:
        def __init__(self):
            mlflow.start_run()

        def log(self, peer, step, values):
            mlflow.log_metrics({f"{peer}/{name}": value for name, value in values.items()}, step=step)

        def close(self):
            mlflow.end_run()

and then ``p2ptrain peer --logger mine:MLflow``, or ``p2ptrain.run_peer(..., loggers=[MLflow])``.

Invariant: imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from p2ptrain.errors import UserError


class Logger(Protocol):
    """What is told of a training, as it goes on."""

    def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
        """Of the peer with this name, after so many optimizer steps: fields of ``metrics.jsonl`` that are numbers."""
        ...

    def close(self) -> None:
        """There is no more."""
        ...


class a_persons_code(contextlib.AbstractContextManager[None]):
    """Runs what is not ours: whatever it raises, ``sys.exit`` too, leaves as a ``UserError``."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise UserError(f"{self._doing}: {type(error).__name__}: {error}") from error


def find_logger(name: str) -> Callable[[], Logger]:
    """The class that ``package.module:Class`` names, of this directory or installed. Raises ``UserError``."""
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise UserError(f"--logger {name}: expected package.module:Class, for example --logger mine:MLflow")
    sys.path.insert(0, os.getcwd())
    try:
        with a_persons_code(f"--logger {name}: module {module_name!r} can't be imported"):
            module = importlib.import_module(module_name)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(os.getcwd())
    made = getattr(module, class_name, None)
    if not callable(made) or not all(callable(getattr(made, each, None)) for each in ("log", "close")):
        raise UserError(
            f"--logger {name}: {class_name!r} in {module_name!r} is no class with methods log(peer, step, values) "
            "and close()"
        )
    found: Callable[[], Logger] = made
    return found


class TensorBoard:
    """Event files that TensorBoard reads, a run a peer: ``DIR/NAME/events.out.tfevents.*``.

    TensorBoard's own writer takes 26 MB and half a second to import; here it is a few lines, and the board may run on
    another device. The format: github.com/tensorflow/tensorboard, ``tensorboard/compat/proto/event.proto``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, peer: str, step: int, values: Mapping[str, float]) -> None:
        now = time.time()
        file = self._files.get(peer) or self._open(peer, now)
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _tag(2, 5) + struct.pack("<f", value))
            for name, value in values.items()
        )
        file.write(_framed(_time(now) + _tag(2, 0) + _varint(max(0, step)) + _bytes(5, summary)))
        file.flush()

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _open(self, peer: str, now: float) -> BinaryIO:
        run = self._folder / ("".join(c if c.isalnum() or c in "-_. " else "_" for c in peer[:80]).strip(". ") or "_")
        run.mkdir(exist_ok=True)
        file = self._files[peer] = (
            run / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}.{len(self._files)}"
        ).open("ab")
        file.write(_framed(_time(now) + _bytes(3, b"brain.Event:2")))
        return file


# --- protocol buffers, and the records that TensorBoard keeps them in ---


def _time(seconds: float) -> bytes:
    return _tag(1, 1) + struct.pack("<d", seconds)


def _bytes(field: int, data: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(data)) + data


def _tag(field: int, kind: int) -> bytes:
    return bytes([field << 3 | kind])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    """CRC-32C, turned and shifted, so that a checksum of data that holds a checksum is none."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC = tuple(_crc_of(byte) for byte in range(256))
