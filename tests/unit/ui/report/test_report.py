"""A report tells what is in the files and nothing else, shows nobody's text as markup, and needs no Internet."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import UserError
from p2ptrain.runtime.metrics.recorder import FILE
from p2ptrain.runtime.node.journal import Journal
from p2ptrain.ui.report import charts
from p2ptrain.ui.report import gathering as gatherings
from p2ptrain.ui.report.gathering import gather
from p2ptrain.ui.report.page import page, to_csv

BEGIN = 1.7e9
EVIL = '"><script>alert(1)</script>=cmd'


def device(
    folder: Path,
    name: str,
    others: tuple[str, ...] = (),
    *,
    job: str = "aa11",
    rounds: int = 3,
    begin: float = BEGIN,
) -> Path:
    """A state directory of a device that trained with others: it knows of their last rounds only."""
    folder.mkdir(exist_ok=True)
    metrics, journal = Journal(folder / FILE), Journal(folder / "journal.jsonl")
    metrics.write(begin, "job", job=job, name="shapes", mode="tasks", model="lenet", rounds=rounds, classes=4)

    def figures(at: float, who: str, own: bool, number: int, **more: float | str) -> None:
        known = {"phase": "training", "epoch": 1, "part": 0, "round": number, "step": 10 * number, **more}
        metrics.write(at, "metrics", job=job, peer=f"id-{who}", name=who, own=own, **known)

    journal.write(begin, "joined", peer="x", name="friend")
    for number in range(1, rounds + 1):
        figures(begin + 10 * number, name, True, number, loss=1 / number, accuracy=0.2 * number, samples=100 * number)
    for other in others:
        figures(begin + 10 * rounds, other, False, rounds, samples=100 * rounds, bytes_sent=5 * 10**6)
    metrics.close()
    journal.close()
    return folder


class Outline(HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "onload", "onclick", "style")]


def test_one_device_tells_of_all_it_heard_of(tmp_path: Path) -> None:
    found = gather([device(tmp_path / "a", "laptop", ("board",))])
    assert [each.name for each in found.peers] == ["laptop", "board"]
    assert found.peers[0].series("loss") == [(BEGIN + 10 * n, 1 / n) for n in (1, 2, 3)]
    assert found.peers[0].series("accuracy", "samples") == [(100.0 * n, 0.2 * n) for n in (1, 2, 3)]
    assert found.peers[1].series("loss") == [] and found.peers[1].last("bytes_sent") == 5 * 10**6
    assert [event.words for event in found.events] == ["friend is here"] and found.notes == ()


def test_events_name_peers(tmp_path: Path) -> None:
    folder, peer = device(tmp_path / "a", "laptop"), "abcdefgh234567ab"
    for file, kind in ((FILE, "metrics"), ("journal.jsonl", "job-from")):
        lines = Journal(folder / file)
        lines.write(BEGIN + 5, kind, job="aa11", peer=peer, name="board", own=False, round=1)
        lines.close()
    assert "got the job from board" in {event.words for event in gather([folder]).events}


def test_a_peers_own_directory_counts(tmp_path: Path) -> None:
    folders = [device(tmp_path / "a", "laptop", ("board",)), device(tmp_path / "b", "board", ("laptop",))]
    found = gather(folders)
    assert {each.name: len(each.lines) for each in found.peers} == {"laptop": 3, "board": 3}
    assert all(len(each.series("loss")) == 3 for each in found.peers)
    assert [event.device for event in found.events] == ["laptop", "board"]
    assert any("own clock" in note for note in found.notes)


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    found = gather([device(tmp_path / "a", "laptop", ("board", EVIL))])
    text = page(found)
    outline = Outline(text)
    assert outline.sources == [] and not outline.tags & {"script", "link", "img", "iframe", "object"}
    assert "http" not in text and "url(" not in text and EVIL not in text
    assert "shapes (aa11)" in text and "mode tasks" in text and "3 peers" in text
    drawn = re.findall(r'<svg class="chart".*?</svg>', text)
    assert len(drawn) == 5 and all(ElementTree.fromstring(svg).get("aria-label") for svg in drawn)
    assert "was not looked at" in text


def test_how_good_the_model_is(tmp_path: Path) -> None:
    folder = device(tmp_path / "a", "laptop")
    metrics = Journal(folder / FILE)
    base = {"job": "aa11", "round": 3, "step": 30, "phase": "done"}
    for name, accuracy in (("laptop", 0.5), ("board", 1.0)):
        known = {"model_accuracy": accuracy, "model_samples": 100, "own": name == "laptop"}
        metrics.write(BEGIN + 40, "metrics", peer=f"id-{name}", name=name, **base, **known)
    assert "<b>75.0 %</b> of 200 validation samples of 2 devices" in page(gather([folder]))
    looked = {"model_accuracy": 0.9, "model_samples": 240}
    metrics.write(BEGIN + 50, "model", peer="id-laptop", name="laptop", own=True, **base, **looked)
    metrics.close()
    assert "<b>90.0 %</b> of the group's 240 validation samples" in page(gather([folder]))


def test_the_table(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(gather([device(tmp_path / "a", "=laptop", ("board",))])))))
    assert [row["name"] for row in rows] == ["'=laptop", "'=laptop", "'=laptop", "board"], "no formula of anybody's"
    assert rows[1]["loss"] == "0.5" and rows[3]["loss"] == "" and rows[0]["time"] == f"{BEGIN + 10:.3f}"


def test_the_last_job_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folder = device(tmp_path / "a", "laptop", job="old1")
    device(folder, "laptop", job="new2", begin=BEGIN + 1000)
    found = gather([folder])
    assert found.job["job"] == "new2" and any("old1" in note for note in found.notes)
    assert len(found.events) == 1, "what happened while the other was trained is left out"
    assert gather([folder], "old1").job["job"] == "old1"
    with pytest.raises(UserError, match="nothing of job zz; there is new2, old1"):
        gather([folder], "zz")
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        gather([tmp_path])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = device(tmp_path / "a", "laptop", rounds=50)
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    (folder / "metrics.old.jsonl").write_bytes(b"".join(lines[10:20]))
    (folder / FILE).write_bytes(b"".join(lines[20:]) + b'{"time":1.7e9,"kind":"lines-lost","lines":7}\n{"half')
    notes = gather([folder]).notes
    assert any("its beginning is missing" in note for note in notes) and any("7 lines" in note for note in notes)
    monkeypatch.setattr(gatherings, "MAX_LINES", 20)
    found = gather([folder])
    assert len(found.lines) < 20 and any("only the newest" in note for note in found.notes)
    for number in range(70):
        device(tmp_path / "b", f"peer{number}")
    assert len(gather([tmp_path / "b"]).peers) <= gatherings.MAX_PEERS


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_within(low: float, span: float) -> None:
    high = low + span
    if high <= low:
        return
    found = charts.ticks(low, high)
    slack = (high - low) * 1e-6 + abs(low) * 1e-9
    assert len(found) <= 8 and all(low - slack <= tick <= high + slack for tick in found)


def test_long_lines_keep_their_ends() -> None:
    points = [(float(i), float(i * i)) for i in range(10_000)]
    kept = charts.thinned(points)
    assert len(kept) == charts.MAX_POINTS and (kept[0], kept[-1]) == (points[0], points[-1])
    assert charts.thinned(points[:7]) == points[:7]


def test_a_curve_ends_with_the_training_and_a_bar_when_the_device_was_last_heard_of(tmp_path: Path) -> None:
    folder = device(tmp_path / "a", "ann")
    metrics, journal = Journal(folder / FILE), Journal(folder / "journal.jsonl")
    last = {"job": "aa11", "peer": "id-ann", "name": "ann", "own": True, "round": 3, "step": 30, "samples": 300}
    for at in (31, 40, 500):
        metrics.write(BEGIN + at, "metrics", **last, phase="fitting", loss=1 / 3, accuracy=0.2 * 3, bytes_sent=at)
    journal.write(BEGIN + 560, "left", peer="x", name="friend")
    journal.write(BEGIN + 600, "job", job="bb22", name="next", mode="tasks")
    journal.write(BEGIN + 900, "left", peer="x", name="friend")
    metrics.close()
    journal.close()
    (ann,) = gather([folder]).peers
    assert [x - BEGIN for x, _ in ann.series("loss", trained=True)] == [10, 20, 30]
    assert [x - BEGIN for x, _ in ann.series("bytes_sent")] == [31, 40, 500]
    assert ann.phases()[-1] == (BEGIN + 31, BEGIN + 560, "fitting") and gather([folder]).end == BEGIN + 560


def test_a_job_that_began_with_a_model_says_so(tmp_path: Path) -> None:
    folder = device(tmp_path / "a", "ann", rounds=1)
    assert "begun with" not in page(gather([folder]))
    metrics = Journal(folder / FILE)
    metrics.write(BEGIN, "job", job="aa11", name="shapes", mode="tasks", init="0" * 64)
    metrics.close()
    assert "begun with a trained model" in page(gather([folder]))


def test_a_look_on_the_way_is_not_passed_off_as_the_finished_model(tmp_path: Path) -> None:
    folder = device(tmp_path / "a", "laptop")

    def look(at: float, accuracy: float, **more: float) -> None:
        lines = Journal(folder / FILE)
        known = {"job": "aa11", "peer": "id-laptop", "name": "laptop", "own": True, "step": 30, "model_samples": 40}
        lines.write(BEGIN + at, "model", **known, model_accuracy=accuracy, **more)
        lines.close()

    look(12, 0.5, round=1, model_loss=1.0)
    look(22, 0.75, round=2, model_loss=0.5)
    text = page(gather([folder]))
    assert "Put together after round 2, while it was trained, the model got <b>75.0 %</b> of 40" in text
    look(31, 0.9, round=3)
    look(32, 0.75, round=2, model_loss=0.5)
    assert "The assembled model gets <b>90.0 %</b> of the group's 40 validation samples right." in page(
        gather([folder])
    )
