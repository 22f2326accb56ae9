"""Packages are pinned with hashes, and what is known against them is found out where there is a network."""

from __future__ import annotations

import configparser
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import advisories  # noqa: E402
from advisories import Advisory, Pinned, UnansweredError, known_against, pinned  # noqa: E402

LOCKED = (ROOT / "scripts" / "locked.txt").read_text(encoding="utf-8")
PACKAGES = [Pinned("good", "1.0"), Pinned("holey", "2.0")]
TOLD = {
    "id": "GHSA-1",
    "aliases": ["CVE-2026-1"],
    "summary": "reads beyond\x1b[31m the end",
    "affected": [
        {"package": {"name": "Holey"}, "ranges": [{"events": [{"introduced": "0"}, {"fixed": "2.1"}]}]},
        {"package": {"name": "other"}, "ranges": [{"events": [{"fixed": "9"}]}]},
    ],
}


class Database:
    """With canned answers: pages of results by package, and advisories by id."""

    def __init__(self, pages: dict[str, list[list[str]]], told: dict[str, Any]) -> None:
        self.pages = pages
        self.told = told
        self.asked: list[str] = []

    def __call__(self, path: str, question: Any) -> Any:
        self.asked.append(path)
        if question is None:
            return self.told[path.rpartition("/")[2]]
        return {"results": [self._result(query) for query in question["queries"]]}

    def _result(self, query: Any) -> Any:
        assert query["package"]["ecosystem"] == "PyPI" and query["version"]
        pages = self.pages.get(query["package"]["name"], [])
        number = int(query.get("page_token", "0"))
        if not pages:
            return {}
        more = {"next_page_token": str(number + 1)} if number + 1 < len(pages) else {}
        return {"vulns": [{"id": id, "modified": "x"} for id in pages[number]]} | more


def test_what_is_known_is_told_with_what_mends_it() -> None:
    database = Database({"holey": [["GHSA-1"]]}, {"GHSA-1": TOLD})
    (found,) = known_against(PACKAGES, database)
    assert found == Advisory("holey", "2.0", "GHSA-1", ("CVE-2026-1",), "reads beyond [31m the end", ("2.1",))
    assert database.asked == ["/v1/querybatch", "/v1/vulns/GHSA-1"]


def test_further_pages_are_asked_for_and_withdrawn_ones_left_out() -> None:
    told = {"a": TOLD | {"id": "a"}, "b": TOLD | {"id": "b", "withdrawn": "2026-01-01"}, "c": TOLD | {"id": "c"}}
    database = Database({"holey": [["a"], ["b", "c"]]}, told)
    assert [each.id for each in known_against(PACKAGES, database)] == ["a", "c"]
    assert database.asked.count("/v1/querybatch") == 2


def test_pages_without_end_are_not_followed() -> None:
    with pytest.raises(UnansweredError, match="pages"):
        known_against(PACKAGES, Database({"holey": [["GHSA-1"]] * 100}, {"GHSA-1": TOLD}))


@pytest.mark.parametrize("answer", [{}, [], None, {"results": []}, {"results": [{}, {"vulns": [{}]}]}, {"results": 5}])
def test_another_kind_of_answer_is_no_all_clear(answer: Any) -> None:
    with pytest.raises(UnansweredError, match="form"):
        known_against(PACKAGES, lambda path, question: answer)


def test_exit_status_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert advisories.main([], Database({}, {})) == 0
    assert re.fullmatch(r"\d+ packages checked, 0 advisories\n", capsys.readouterr().out)
    torch = TOLD | {"affected": [{"package": {"name": "torch"}, "ranges": [{"events": [{"fixed": "9.9"}]}]}]}
    database = Database({"torch": [["GHSA-1"]]}, {"GHSA-1": torch})
    assert advisories.main([], database) == 1
    assert "(GHSA-1 CVE-2026-1); mended in 9.9" in capsys.readouterr().out
    assert advisories.main(["--json"], database) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["checked"] > 50 and [each["name"] for each in told["advisories"]] == ["torch"]


def test_without_a_network_it_says_that_nothing_was_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert advisories.main(["--database", "http://127.0.0.1:1"]) == 2
    said = capsys.readouterr()
    assert not said.out and "can't be reached" in said.err and "nothing was checked" in said.err


def test_pinned_packages_are_read_once_each() -> None:
    text = "# a\nIt_s.me==1.0 ; python_version < '3.12' \\\n    --hash=sha256:00\nother==2\n"
    assert pinned([text, "it-s-me==1.0\n"]) == [Pinned("it-s-me", "1.0"), Pinned("other", "2")]


# --- the pinned packages ----------------------------------------------------------------------------------------------


def locked() -> dict[str, tuple[set[str], list[str]]]:
    """Versions and hashes by name."""
    found: dict[str, tuple[set[str], list[str]]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", LOCKED)[1:]:
        (package,) = pinned([block])
        versions, hashes = found.setdefault(package.name, (set(), []))
        versions.add(package.version)
        hashes += re.findall(r"--hash=sha256:([0-9a-f]{64})(?![0-9a-f])", block)
        assert hashes, package
    return found


def test_what_is_pinned_is_pinned_with_hashes() -> None:
    """Or `scripts/lock.sh` was not run after a change."""
    have = locked()
    (*_,) = constraints = pinned([(ROOT / "constraints.txt").read_text(encoding="utf-8")])
    assert {p.name: {p.version} for p in constraints if p.name != "torch"} == {
        p.name: have[p.name][0] for p in constraints if p.name != "torch"
    }, "run scripts/lock.sh"
    assert "torch" not in have


def test_what_the_package_needs_is_pinned_with_hashes() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    lines += [line for extra in setup["options.extras_require"].values() for line in extra.splitlines()]
    wanted = {re.split(r"[<>=!~ ;\[]", line)[0].lower() for line in lines if line}
    assert wanted - {"torch"} <= locked().keys(), "run scripts/lock.sh"
    assert {"pip", "setuptools"} <= locked().keys()
