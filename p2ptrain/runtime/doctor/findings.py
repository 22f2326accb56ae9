"""What the doctor says.

Invariant: every finding that is a problem says what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["fine", "hint", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    area: str
    text: str
    advice: str = ""
    proved: bool = False
    """With another device."""


def problem(area: str, text: str, advice: str) -> Finding:
    return Finding("problem", area, text, advice)


def contents(path: str | Path) -> str:
    """Of a text file; "" if there is none, or it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
