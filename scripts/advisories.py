#!/usr/bin/env python3
"""Asks an advisory database whether anything is known against the versions that the scripts install.

    scripts/advisories.py             # what is known, a line each; exit status 1 if there is something
    scripts/advisories.py --json

Asked is OSV (https://osv.dev), which has the advisories of PyPI, GitHub and others: it is told the names and versions
of scripts/locked.txt and constraints.txt, and nothing else. Without a network it says so, and ends with status 2: then
nothing was checked.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "scripts" / "locked.txt", ROOT / "constraints.txt")
DATABASE = "https://api.osv.dev"
TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 16 << 20
MAX_PAGES = 20
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")

Ask = Callable[[str, object | None], Any]
"""A path of the database, and what is posted to it (None: nothing, it is a question): its answer, read from JSON."""


class UnansweredError(Exception):
    """Why nothing is known, in words."""


@dataclass(frozen=True, order=True, slots=True)
class Pinned:
    name: str
    version: str


@dataclass(frozen=True, order=True, slots=True)
class Advisory:
    """Something known against a version. ``fixed_in``: the versions that are said to mend it."""

    name: str
    version: str
    id: str
    aliases: tuple[str, ...]
    summary: str
    fixed_in: tuple[str, ...]


def pinned(texts: Sequence[str]) -> list[Pinned]:
    """Every ``name==version`` of requirement files, each once."""
    lines = (line for text in texts for line in text.splitlines())
    matches = (match for line in lines if (match := _PINNED.match(line)))
    return sorted({Pinned(_canonical(match[1]), match[2]) for match in matches})


def _canonical(name: str) -> str:
    """As the database has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def known_against(packages: Sequence[Pinned], ask: Ask) -> list[Advisory]:
    """What the database knows and did not withdraw. Raises ``UnansweredError``."""
    queries = [{"package": {"ecosystem": "PyPI", "name": p.name}, "version": p.version} for p in packages]
    found: set[tuple[Pinned, str]] = set()
    try:
        left = list(zip(packages, queries, strict=True))
        for _ in range(MAX_PAGES):
            results = ask("/v1/querybatch", {"queries": [query for _, query in left]})["results"]
            more = []
            for (package, query), result in zip(left, results, strict=True):
                found |= {(package, str(each["id"])) for each in result.get("vulns", ())}
                if token := result.get("next_page_token"):
                    more.append((package, query | {"page_token": token}))
            left = more
            if not left:
                break
        if left:
            raise UnansweredError(f"its answer has more than {MAX_PAGES} pages")
        told = {id: ask(f"/v1/vulns/{urllib.parse.quote(id, safe='')}", None) for id in sorted({id for _, id in found})}
        return sorted(_advisory(package, told[id]) for package, id in found if not told[id].get("withdrawn"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnansweredError(f"its answer is not of the form that is known ({error!r:.200})") from error


def _advisory(package: Pinned, told: Any) -> Advisory:
    parts = told.get("affected", ())
    affected = (each for each in parts if _canonical(each.get("package", {}).get("name", "")) == package.name)
    events = (event for each in affected for span in each.get("ranges", ()) for event in span.get("events", ()))
    fixed = tuple(sorted({str(event["fixed"]) for event in events if "fixed" in event}))
    summary = told.get("summary") or str(told.get("details", "")).strip().split("\n")[0]
    aliases = tuple(sorted(map(str, told.get("aliases", ()))))
    return Advisory(package.name, package.version, str(told["id"]), aliases, _clean(str(summary))[:160], fixed)


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def over_network(database: str) -> Ask:
    """Asks ``database``. Raises ``UnansweredError``."""

    def ask(path: str, question: object | None) -> Any:
        data = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(database + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                read = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise UnansweredError(f"it answered with {error.code} ({error.reason})") from error
        except (OSError, ValueError) as error:  # URLError is one
            raise UnansweredError(f"it can't be reached ({getattr(error, 'reason', error)})") from error
        if len(read) > MAX_ANSWER_BYTES:
            raise UnansweredError("its answer is too long")
        return json.loads(read)

    return ask


def main(arguments: list[str] | None = None, ask: Ask | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="what was checked and what is known, as JSON")
    parser.add_argument("--database", default=DATABASE, help=f"another one that speaks OSV (default: {DATABASE})")
    options = parser.parse_args(arguments)
    packages = pinned([path.read_text(encoding="utf-8") for path in FILES])
    try:
        known = known_against(packages, ask or over_network(options.database))
    except UnansweredError as error:
        print(
            f"advisories.py: {options.database}: {error}: nothing was checked. Run it again where there is a network, "
            "or name another database with --database",
            file=sys.stderr,
        )
        return 2
    if options.json:
        print(json.dumps({"checked": len(packages), "advisories": [asdict(each) for each in known]}, indent=1))
    else:
        for each in known:
            names = " ".join([each.id, *each.aliases])
            mended = f"mended in {', '.join(each.fixed_in)}" if each.fixed_in else "no version is said to mend it"
            print(f"{each.name} {each.version}: {each.summary} ({names}); {mended}")
        print(f"{len(packages)} packages checked, {len(known)} advisories")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
