"""Where commands write: files, and folders of files.

Invariant: what can't be written to is said before any work is done, in a line with the option's name; a file is written
whole or not at all, and takes the place of nothing but a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from p2ptrain.errors import UserError
from p2ptrain.lasting import in_place_of

_STANDARD = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def check_output(path: Path, force: bool = True, *, is_text: bool = False, option: str = "-o") -> Path:
    """A path that a file can be written to. Raises ``UserError``.

    ``is_text``: into what is no file, such as /dev/stdout, too; anything else would take its place. ``option``: what
    names it.
    """
    folder, another = path.absolute().parent, f"name another with {option}"
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; name a file with {option}")
    if is_pipe(path):
        if not is_text:
            raise UserError(f"{path}: is no ordinary file, and would be replaced by one; {another}")
        if not os.access(path, os.W_OK):
            raise UserError(f"{path}: may not be written to; {another}")
        return path
    if not force and os.path.isfile(path):
        raise UserError(f"{path}: exists already; name another file with {option}, or overwrite it with --force")
    if not os.path.isdir(folder):
        raise UserError(f"{path}: no such folder: {folder}; make it first, or {another}")
    for each in (folder, Path(os.path.realpath(path)).parent):  # a link stays one where its file is written anew
        if not os.access(each, os.W_OK | os.X_OK):
            raise UserError(f"{path}: this user can't write to {each}; name another place with {option}")
    return path


def is_pipe(path: Path) -> bool:
    """Whether what is written to it goes on to somewhere: a pipe, a terminal, a device; standard output even where a
    shell puts that into a file."""
    is_file = os.path.isfile(path) and not os.fspath(path.absolute()).startswith(_STANDARD)
    return os.path.exists(path) and not is_file and not os.path.isdir(path)


def check_folder(path: Path, option: str = "--out") -> Path:
    """A folder that files can be written into, made if there is none. Raises ``UserError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is no folder" if os.path.exists(path) else error.strerror
        raise UserError(f"{option} {path}: can't be made ({why}); name another folder") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: this user can't write to it; name another folder")
    return path


def check_gives_way(path: Path, mark: str, what: str, *, force: bool, option: str = "-o") -> None:
    """Whether ``what`` may be written there: over one that begins with ``mark``, or over anything with ``force``.

    Raises ``UserError``.
    """
    check_output(path, is_text=True, option=option)
    if path.is_file() and not force:
        with path.open("rb") as file:
            if file.read(len(mark.encode())) != mark.encode():
                raise UserError(f"{path}: is there already and is no {what}; name another file, or --force")


def check_apart(path: Path, option: str, other: Path, others_option: str) -> None:
    """Two files that a command writes are two. Raises ``UserError``."""
    if not is_pipe(path) and os.path.realpath(path) == os.path.realpath(other):
        raise UserError(f"{option} and {others_option} both name {path}; give each a file of its own")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all; into what is no file, such as /dev/stdout, as it comes. Raises ``UserError``."""
    try:
        if is_pipe(path):
            path.write_text(text, encoding="utf-8", errors="replace")
            return
        with in_place_of(path.resolve()) as beside:
            beside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); name another file with -o") from None


@contextlib.contextmanager
def gone_unless_done(path: Path) -> Iterator[None]:
    """Within, a file is written to be named by another one. After an error it is gone, unless it was there before."""
    was_there = os.path.lexists(path)
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def seen_from(output: Path, path: Path) -> str:
    """How a file that is written to ``output`` names another one: by the way to it from there, so that both can be
    moved together. Of what is no file nobody knows where it goes: from anywhere."""
    if is_pipe(output):
        return path.resolve().as_posix()
    return Path(os.path.relpath(path.resolve(), output.absolute().parent.resolve())).as_posix()
