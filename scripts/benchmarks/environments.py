"""Virtual environments of other programs that benchmarks run beside p2ptrain, made on demand and kept.

Invariant: an environment is used only if it was made whole from the very requirements that lie beside its worker, and
p2ptrain's own environment is never touched.

They lie in ``~/.cache/p2ptrain-benchmarks/NAME``, or in the folder that ``P2PTRAIN_BENCHMARKS`` names. To make one
anew, delete it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.common import REPOSITORY

STAMP = "installed-requirements.txt"
TIMEOUT_S = 1200.0
"""Of each step: torch alone is a large download."""


class NotInstallableError(Exception):
    """Why an environment can't be made here, in a line."""


def folder_of(name: str) -> Path:
    home = os.environ.get("P2PTRAIN_BENCHMARKS") or "~/.cache/p2ptrain-benchmarks"
    return Path(home).expanduser() / name


def python_of(name: str, requirements: Path) -> Path | None:
    """The interpreter of an environment that was made from these requirements; ``None`` if there is none."""
    folder = folder_of(name)
    python = folder / "bin" / "python"
    try:
        made_from = (folder / STAMP).read_text(encoding="utf-8")
    except OSError:
        return None
    return python if python.exists() and made_from == requirements.read_text(encoding="utf-8") else None


def ensure(name: str, requirements: Path) -> Path:
    """Its interpreter, once everything is installed. Raises ``NotInstallableError``."""
    if python := python_of(name, requirements):
        return python
    folder = folder_of(name)
    print(f"installing {requirements.name} into {folder} (torch is a large download; once only)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        # The pinned torch first and by itself: it is p2ptrain's own, which need not be the newest that the rest allows.
        _run([*pip, _pinned_torch()])
        _run([*pip, "--requirement", str(requirements)])
    except NotInstallableError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / STAMP).write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return python


def _pinned_torch() -> str:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstallableError(str(error)) from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        raise NotInstallableError((errors or lines or [f"{command[0]}: status {done.returncode}"])[0][:300])
