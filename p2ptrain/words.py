"""Numbers and other people's text, as a terminal may show them.

Invariant: no control character of anybody's text reaches the terminal, and every number comes with its unit.
"""

from __future__ import annotations

import math
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

FASTEST_MBIT_S = 100_000.0
"""What comes out faster than the fastest network card did not take long enough to be measured."""

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def part_of(amount: float, whole: float) -> str:
    """``1/12.3 of``, or ``1.2 times``, before the name of the whole."""
    times = whole / amount
    return f"1/{times:.1f} of" if times >= 1 else f"{1 / times:.1f} times"


def clean(text: str, width: int = 200) -> str:
    """Printable, and cut to ``width`` characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def as_text(text: str) -> str:
    """What the command line gave, in letters that can be sent: bytes that are no UTF-8 become question marks."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\ufffd", "?")


def word(thing: object) -> str:
    """A path or a name in a command that a person may copy: one word to a shell, whatever is in it."""
    return shlex.quote(str(thing))


def counted(number: int, thing: str) -> str:
    """``1 peer``, ``2 peers``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def scaled(value: float, unit: str) -> str:
    """``53 GFLOP/s``, ``1.2 MB``; ``-`` for what is not known."""
    if not math.isfinite(value) or value <= 0:
        return "-"
    for scale, prefix in _SCALES:
        if value >= scale:
            number = value / scale
            return f"{number:.{0 if number >= 100 else 1}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def link_rate(mbit_s: float) -> str:
    """``carries 94 Mbit/s``."""
    if mbit_s > FASTEST_MBIT_S:
        return "is too fast to measure"
    return f"carries {mbit_s:,.0f} Mbit/s" if mbit_s >= 10 else f"carries {mbit_s:.2g} Mbit/s"


def mbit_s(bytes_per_s: float) -> str:
    """``5.32``, ``4,180``: Mbit/s, as a number."""
    rate = bytes_per_s * 8e-6
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def percent(share: float | None) -> str:
    """``93.1 %``."""
    return f"{100 * share:.1f} %" if share is not None and math.isfinite(share) else "-"


def duration(seconds: float) -> str:
    """``90 s``, ``10 min``, ``2 h``."""
    if seconds == math.inf:
        return "until you stop it"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def listed(names: Iterable[str], limit: int = 8, width: int = 40) -> str:
    """``cat, dog and 10 more``: names for one line, each of at most ``width`` characters."""
    known = list(names)
    shown = ", ".join(clean(name, width) for name in known[:limit])
    return f"{shown} and {len(known) - limit:,} more" if len(known) > limit else shown


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """What people call peers, by their ids: their names; with the beginning of its id where several begin alike.

    The first 32 characters tell them apart.
    """
    short = {peer: clean(name, 25) for peer, name in names.items()}
    known = Counter(short.values())
    return {
        peer: (name if known[short[peer]] == 1 else f"{short[peer]} {peer[:6]}") if name else peer
        for peer, name in names.items()
    }


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned columns; those in ``right`` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def folded(name: str) -> str:
    """What names that mean the same have in common: neither case, nor how accents are stored, nor space around it, nor
    what can't be seen (a byte order mark, a space of no width), nor zeros before a number."""
    seen = "".join(c for c in name if unicodedata.category(c) != "Cf")
    out = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold()).strip()
    return out.lstrip("0") or "0" if out.isascii() and out.isdigit() else out


def match_class(name: str, classes: Iterable[str]) -> str | None:
    """The name in ``classes`` that is meant: equal, or the only one that is equal when ``folded``."""
    known = list(classes)
    if name in known:
        return name
    found = [k for k in known if folded(k) == folded(name)]
    return found[0] if len(found) == 1 else None
