"""What people see: tables, sentences, reports; and that nobody's text can take over a terminal."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import records

from p2ptrain import words
from p2ptrain.config import DataConfig, Job
from p2ptrain.core.harvest import BestState, Look, PartReport
from p2ptrain.core.looks.figures import GroupLook
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.ids import BlobId, PeerId
from p2ptrain.modes.tasks import words as tasks_words
from p2ptrain.modes.tasks.harvest import TasksHarvest
from p2ptrain.modes.tasks.plan import ClassPart, TasksBody
from p2ptrain.runtime import report
from p2ptrain.runtime.node.journal import Line
from p2ptrain.ui import messages_for_people, status_table
from p2ptrain.ui.watch import PlainScreen, open_screen
from p2ptrain.wire.messages import NO_PART, LookFigure, MemberState, Record, SnapshotRef, StreamRate

A, B = PeerId("a" * 16), PeerId("b" * 16)
JOB = Job(data=DataConfig(("cat", "dog", "emu", "fox"), (1, 8, 8), mean=(0.0,), std=(1.0,)))
PATIENT = dataclasses.replace(JOB, training=dataclasses.replace(JOB.training, patience=2))
PLAN = Plan(
    epoch=3,
    job=JOB.id,
    mode="tasks",
    proposer=A,
    peers=(PeerSnapshot(A, 1.0, 0, (), ()), PeerSnapshot(B, 1.0, 0, (), ())),
    parent="0" * 64,
    body=TasksBody(
        parts=(
            ClassPart(0, 0.6, (A,), (0, 1), ("group-0",)),
            ClassPart(1, 0.4, (B,), (2, 3), ("group-1",)),
        ),
        trunk=0,
        disjoint=False,
        targets="rest",
        combine="own",
        fit_head=True,
        former=(),
    ),
)


def record(peer: PeerId, **changes: Any) -> Record:
    """Of one that trains."""
    known = dict(
        name="kitchen", addresses=("tcp://127.0.0.1:5710",), job=JOB.id, counts=(1, 2, 3, 4), flops_per_s=5.3e10,
        memory_bytes=2_000_000_000, epoch=3, plan=PLAN.hash, part=0, phase="training", round=4, step=120, samples=7680,
        loss=0.4321, samples_per_s=350.4, bytes_sent=1_234_567,
    )  # fmt: skip
    return records.record(peer, **(known | changes))


@dataclass(frozen=True)
class Found:
    job: Job | None = JOB
    plan: Plan | None = PLAN
    records: tuple[Record, ...] = (record(A),)
    states: dict[PeerId, MemberState] = field(default_factory=dict)
    refused: dict[PeerId, dict[str, int]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    sent: dict[PeerId, dict[str, int]] = field(default_factory=dict)
    figures: dict[PeerId, dict[str, float]] = field(default_factory=dict)


def test_a_row_says_device_part_classes_step_loss_and_speed() -> None:
    text = status_table.render(Found())
    for expected in ("kitchen aaaaaa", "53.0 GFLOP/s, 2.0 GB", "training", "4/10", "120", "0.432", "350", "1.2 MB"):
        assert expected in text
    assert "#0 cat, dog, 60 % of the width" in text
    assert "nobody trains part 1 (emu, fox)" in text


def test_what_one_device_lies_about_hides_nothing_of_another_s_copies() -> None:
    honest = record(A, holdings=(copy(4),))
    lies = record(B, part=1, round=10**6, holdings=(copy(3, B), copy(10**6, B)))
    for told in ((honest, lies), (lies, honest)):
        found = status_table.to_plain(Found(records=told))["coverage"]
        assert found["cells"][0]["copies"] == {A: 4, B: 3} and found["done"] <= 10


def test_waits_and_refusals_stand_below_the_row() -> None:
    found = Found(records=(record(A, waiting_for="others to finish: B"),), refused={A: {"proof": 2}})
    text = status_table.render(found)
    clean_stop = Found(refused={A: {"session": 2, "replay": 1, "goodbye": 1}})
    assert "refused" not in status_table.render(clean_stop), "what every coming and going brings about"
    assert status_table.to_plain(clean_stop)["peers"][0]["refused"]["session"] == 2
    assert "    waits for others to finish: B" in text and "    refused messages: without the join code 2" in text


NO_JOB = (record(A, job=""), record(B, job=""))
APART = (record(A, job="0123456789abcdef"),)


def copy(round: int, trainer: PeerId = A) -> SnapshotRef:
    return SnapshotRef(0, trainer, 3, round, 30 * round, 1, BlobId("0" * 64), 4)


WAITS = Found(records=(record(A, waiting_for="B"),))
LOOKED = (
    record(A, looks=(LookFigure("a" * 16, 2, 10, 9, 1.0), LookFigure("b" * 16, 4, 10, 5, 1.0))),
    record(B, part=1, looks=(LookFigure("b" * 16, 4, 30, 3, 1.0), LookFigure("a" * 16, 2, 30, 30, 1.0))),
)
WARM = Found(figures={A: {"computes": 0.83, "trainer_cpu": 0.9, "temperature_c": 61.2, "battery": 0.4}})
DONE: dict[str, Any] = {"phase": "done", "accuracy": 0.875}
SHOWN_AND_NOT: list[tuple[str, Found, Found]] = [
    ("peers here: 1", Found(), Found(records=(record(A), record(B)))),
    ("peers here: 1", Found(records=(record(A), record(B)), states={B: "left"}), Found(records=(record(A), record(B)))),
    ("1 peer; it has told no job yet", Found(job=None, records=(record(A, job=""),)), Found(job=None)),
    ("2 peers; none of them has told its job yet", Found(job=None, records=NO_JOB), Found(job=None)),
    (
        f"1 peer; a job ({JOB.id}) that has not come here, or is for another version of p2ptrain",
        Found(job=None),
        Found(job=None, records=NO_JOB),
    ),
    ("no plan yet", Found(plan=None, records=(record(A, plan=""),)), Found(plan=None)),
    ("the group has a plan, which has not come here yet", Found(plan=None), Found(plan=None, records=APART)),
    ("    has another job (0123456789abcdef)", Found(records=APART), Found()),
    (" 4/10 ", Found(), Found(records=APART)),
    ("#0 cat, dog, 60 % of the width", Found(), Found(records=APART)),
    ("  nobody trains part 0", Found(records=APART), Found()),
    (
        "  left out: 2 snapshots that kitchen tells of, of rounds after 10, the job's last",
        Found(records=(record(A, holdings=(copy(10), copy(11), copy(99))),)),
        Found(records=(record(A, holdings=(copy(10),)),)),
    ),
    ("  nobody trains part 1 (emu, fox)", Found(), Found(records=(record(A), record(B, part=1)))),
    ("  nobody trains part 0", Found(states={A: "dead"}), Found(states={A: "suspect"})),
    ("  nobody trains part 0", Found(records=(record(A, phase="failed"),)), Found()),
    ("training?", Found(states={A: "suspect"}), Found()),
    (" lost ", Found(states={A: "dead"}), Found(states={A: "left"})),
    (" left ", Found(states={A: "left"}), Found(states={A: "dead"})),
    ("waits for B", Found(records=(record(A, waiting_for="B"),)), Found()),
    (
        "    computes 83 % of the time; trainer uses 90 % of its threads; 61 °C; battery 40 %",
        WARM,
        dataclasses.replace(WARM, figures={}),
    ),
    ("    battery 40 %", Found(figures={A: {"battery": 0.4}}), Found(figures={B: {"battery": 0.4}})),
    ("ends after round 5: the group was asked to stop", Found(records=(record(A, ends_after=5),)), Found()),
    (
        "ends after round 5: the group was asked to stop, or its model got no better (training.patience)",
        Found(job=PATIENT, records=(record(A, ends_after=5, job=PATIENT.id),)),
        Found(records=(record(A, ends_after=5),)),
    ),
    (
        "the whole model, put together after round 4, its last layer not fitted yet: 20.0 % of 40 validation samples "
        "of 2 devices right; best so far after round 2: 97.5 % of 40",
        Found(records=LOOKED),
        Found(records=(record(A), record(B, part=1))),
    ),
    ("waits for B", WAITS, dataclasses.replace(WAITS, states={A: "dead"})),
    (
        "sent in its last round, Mbit/s: bbbb",
        Found(records=(record(A, sent=(StreamRate(B, 1e6),)),)),
        Found(records=(record(A, sent=(StreamRate(B, 1e6),)),), states={A: "left"}),
    ),
    ("looking from this device: mDNS off; there may be peers it can't see", Found(troubles={"mDNS": "off"}), Found()),
    (
        "on 60 validation samples of 2 devices: 75.0 % right (kitchen aaaaaa 50.0 % of 20, kitchen bbbbbb 87.5 %",
        Found(records=(record(A, phase="done", accuracy=0.5, model_samples=20), record(B, **DONE, model_samples=40))),
        Found(records=(record(A, accuracy=0.5, model_samples=20), record(B, **DONE))),
    ),
    (
        "and 2 more: 2 training; rounds 4 to 4 (`p2ptrain status --json` tells of all)",
        Found(records=tuple(record(PeerId(f"p{number:015d}")) for number in range(status_table.MOST_ROWS + 2))),
        Found(records=tuple(record(PeerId(f"p{number:015d}")) for number in range(status_table.MOST_ROWS))),
    ),
]  # fmt: skip
"""What ``status`` can say, what shows it, and a group of which it would be wrong."""
SHOWN_AND_NOT += [
    (f"refused messages: {words} 3", Found(refused={A: {reason: 3}}), Found(refused={A: {"session": 3}}))
    for reason, words in status_table._REFUSED.items()
]


@pytest.mark.parametrize(("sentence", "shown", "wrong"), SHOWN_AND_NOT)
def test_status_says_it_where_it_is_so_and_not_where_it_is_not(sentence: str, shown: Found, wrong: Found) -> None:
    assert sentence in status_table.render(shown)
    assert sentence not in status_table.render(wrong)


def test_no_sentence_of_status_is_without_its_situation() -> None:
    tree = ast.parse(Path(status_table.__file__).read_text(encoding="utf-8"))
    docs = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    texts = [e.value for e in ast.walk(tree) if isinstance(e, ast.Constant) and id(e) not in docs]
    said = [
        text
        for text in texts
        if isinstance(text, str) and len(re.findall(r"[a-z]{2,}", text)) >= 3 and " " in text.strip()
    ]
    everything = "\n".join(status_table.render(shown) for _, shown, _ in SHOWN_AND_NOT)
    assert len(said) > 15 and [text for text in said if text not in everything] == []


def test_what_keeps_this_device_from_finding_others_is_said() -> None:
    text = status_table.render(Found(troubles={"mDNS": "failed on 10.0.0.1: port 5353 is held by another program"}))
    assert "looking from this device: mDNS failed on 10.0.0.1: port 5353 is held" in text
    assert "looking from" not in status_table.render(Found())


def test_who_is_gone_is_called_so_and_its_part_is_nobodys() -> None:
    found = Found(records=(record(A), record(B, part=1)), states={A: "alive", B: "dead"})
    assert "lost" in status_table.render(found)
    assert status_table.to_plain(found)["plan"]["unstaffed"] == [1]


def test_before_there_is_a_job_or_plan_the_table_still_stands() -> None:
    found = Found(job=None, plan=None, records=(record(A, job="", part=NO_PART, loss=float("nan"), step=0),))
    assert "it has told no job yet" in status_table.render(found)
    plain = status_table.to_plain(found)
    assert json.loads(json.dumps(plain, allow_nan=False))["peers"][0]["part"] is None
    assert "no plan yet" in status_table.render(Found(plan=None, records=(record(A, plan=""),)))


def test_no_control_character_of_a_peer_reaches_the_terminal() -> None:
    evil = "\x1b[2J\r\nroot#\x07"
    text = status_table.render(Found(records=(record(A, name=evil, waiting_for=evil),), refused={A: {evil: 1}}))
    text += str(messages_for_people.tell(Line(0.0, "joined", {"peer": "x", "name": evil})))
    assert not [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "-"), (999.0, "999 B"), (53.2e9, "53.2 GB"), (123.4e6, "123 MB"), (float("nan"), "-")]
)
def test_numbers_come_scaled_with_their_unit(value: float, text: str) -> None:
    assert words.scaled(value, "B") == text


def test_long_names_that_begin_alike_are_told_apart_within_what_is_shown() -> None:
    names = {f"{end}" * 16: f"gpu-node.cluster.example.org-0{end}" for end in "12"}
    shown = {words.clean(name, 32) for name in words.told_apart(names).values()}
    assert len(shown) == 2 and all(any(peer[:6] in name for peer in names) for name in shown)


def test_devices_of_one_name_are_told_apart() -> None:
    """As two boards with the name that their system came with."""
    names = {A: "raspberrypi", B: "raspberrypi", "c" * 16: "laptop", "d" * 16: ""}
    assert words.told_apart(names) == {
        A: "raspberrypi aaaaaa", B: "raspberrypi bbbbbb", "c" * 16: "laptop", "d" * 16: "d" * 16
    }  # fmt: skip
    two = Found(records=(record(A), record(B, part=1)))
    assert status_table.with_names(two, f"{A} helps {B}") == "kitchen aaaaaa helps kitchen bbbbbb"


def test_durations_in_words() -> None:
    assert [words.duration(s) for s in (30, 600, 7200, float("inf"))] == ["30 s", "10 min", "2 h", "until you stop it"]


def test_the_plan_in_a_sentence() -> None:
    own = tasks_words.plan_sentence(PLAN, JOB, A)
    assert own == "plan of epoch 3, 2 parts: this peer trains part 0, classes cat, dog, 60 % of the width"
    assert "stands by" in tasks_words.plan_sentence(PLAN, JOB, PeerId("c" * 16))


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("failed", {"peer": "p", "name": "desk"}, "desk is lost"),
        ("training", {"part": 1, "round": 2, "rounds": 5}, "goes on after round 2"),
        ("training", {"part": 1, "round": 5, "rounds": 5}, "all its 5 rounds already"),
        ("gossip", {"peer": "desk", "bytes": 1_500_000}, "averaged with desk (1.5 MB)"),
        ("other-version", {"peer": "p", "ours": 1, "theirs": 2}, "wire version 2, this peer 1"),
        (
            "socket-refused",
            {"address": "tcp://10.0.0.7:5710", "why": "Too many open files"},
            "no socket left for a link",
        ),
        ("storage-no-files", {"why": "x: can't be opened"}, "nothing is saved now (x: can't be opened)"),
        ("frame-refused", {"peer": "p", "reason": "proof", "why": ""}, "does not hold the join code"),
        ("one-way", {"peer": "p", "addresses": "tcp://1.2.3.4:5"}, "firewall"),
    ],
)
def test_sentences(kind: str, fields: dict[str, str | int], expected: str) -> None:
    assert expected in str(messages_for_people.tell(Line(0.0, kind, fields)))


def test_a_sentence_survives_missing_particulars() -> None:
    for kind in (*messages_for_people._SENTENCES, "unheard-of"):
        messages_for_people.tell(Line(0.0, kind, {}))
    assert messages_for_people.tell(Line(0.0, "replica-acked", {})) is None


REPORT = (PartReport(0, ("cat", "dog"), 0.6, ("kitchen",), 4, 10, 120, 7680, 1_000_000),)


def harvested(**changes: Any) -> TasksHarvest:
    return TasksHarvest(JOB, PLAN, {}, {}, REPORT, missing=(1,), **changes)


def test_the_reassembly_report_says_who_how_fresh_how_much_and_what_is_missing() -> None:
    text = report.render(harvested())
    for expected in ("cat, dog", "60 %", "4/10", "7,680", "kitchen", "MISSING: part 1 (emu, fox)", "NOT FITTED YET"):
        assert expected in text
    plain = report.to_plain(harvested())
    assert plain["complete"] is False and plain["missing"] == [{"part": 1, "classes": ["emu", "fox"]}]
    assert "fitted again" in report.render(harvested(is_fitted=True))
    stopped = harvested(is_fitted=True, stopped=(0,))
    assert "HALF-WAY" in report.render(harvested()) and "HALF-WAY" not in report.render(stopped)
    assert "STOPPED: part 0 (cat, dog) after 4 of 10 rounds" in report.render(stopped)
    assert report.to_plain(stopped)["stopped"] == [0]
    looks = [GroupLook("a" * 16, 4, 40, 36, 0.25, 2), GroupLook("b" * 16, 6, 40, 30, 0.5, 2)]
    best = harvested(best=BestState(looks[0], looks[1], Look("", 44, 0.75)))
    text = report.render(best)
    assert "BEST: the model as it was after round 4: 90.0 % of 40 validation samples of 2 devices right" in text
    assert "at the last look, after round 6: 75.0 % of 40" in text and "the finished model: 75.0 % of 44" in text
    assert "HALF-WAY" not in text and "NOT FITTED YET" not in text
    told = report.to_plain(best)["best"]
    assert (told["round"], told["accuracy"], told["last"]["round"], told["finished"]["samples"]) == (4, 0.9, 6, 44)
    whole = dataclasses.replace(best, missing=())
    assert report.kind(whole) == "best model" and report.to_plain(harvested())["best"] is None
    asked = harvested(stopped_after=4)
    assert "HALF-WAY: so far 4 of 10 rounds; there the group was stopped (`p2ptrain stop`)" in report.render(asked)
    early = dataclasses.replace(asked, job=PATIENT, best_look=looks[0])
    text = report.render(early)
    assert (
        "there the group has ended: its model got no better in 2 looks (training.patience), or it was stopped" in text
    )
    assert "Its best state is that after round 4, 90.0 % of 40 validation samples right (`harvest --best`)" in text
    assert report.to_plain(early)["best_look"]["round"] == 4 and report.to_plain(asked)["best_look"] is None
    assert report.to_plain(asked)["stopped_after"] == 4 and report.to_plain(harvested())["stopped_after"] is None


def test_of_a_room_of_hundreds_those_that_need_a_look_are_shown_and_the_others_counted() -> None:
    everyone = [PeerId(f"p{number:015d}") for number in range(200)]
    odd = {everyone[150]: {"phase": "failed"}, everyone[170]: {"waiting_for": "a partner"}}
    found = Found(
        records=tuple(record(peer, name=f"device {peer[-3:]}", **odd.get(peer, {})) for peer in everyone),
        states={everyone[160]: "dead"},
    )
    text = status_table.render(found)
    assert sum(line.startswith("device ") for line in text.splitlines()) == status_table.MOST_ROWS
    assert all(f"device {number}" in text for number in (150, 160, 170))
    assert "and 168 more: 168 training" in text
    assert len(status_table.to_plain(found)["peers"]) == 200
    shown, others = status_table.rows_of(Found())
    assert shown == [record(A)] and others == ""


def test_a_screen_that_is_no_terminal_writes_what_changed_only() -> None:
    out = io.StringIO()
    screen = PlainScreen(out)
    screen.show(None, "nobody")
    screen.show(Found())
    screen.show(Found())
    screen.close()
    assert (
        out.getvalue().count("kitchen") == 1 and out.getvalue().startswith("nobody\n") and "\x1b" not in out.getvalue()
    )


@pytest.mark.parametrize(("kind", "repaints"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_that_only_writes_on_gets_no_codes(
    kind: str, repaints: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", out)
    screen = open_screen()
    assert isinstance(screen, PlainScreen) != repaints, "rich would show nothing there before the end"
    screen.close()
    plain = PlainScreen(out)
    plain.show(Found())
    assert ("\x1b[2J" in out.getvalue()) == repaints and "kitchen" in out.getvalue()


def test_the_rich_screen_shows_the_same_cells() -> None:
    rich_console = pytest.importorskip("rich.console")
    from p2ptrain.ui.watch import _rich_view

    console = rich_console.Console(file=io.StringIO(), width=200)
    console.print(_rich_view(Found(records=(record(A, waiting_for="a partner"),)), 200))
    text = console.file.getvalue()
    assert "kitchen" in text and "0.432" in text and "waits for a partner" in text and "GFLOP" in text
    console.print(narrow := _rich_view(Found(), 80))
    assert len(narrow.renderables[1].columns) < len(status_table.TITLES)


def test_a_loss_that_is_not_known_is_not_shown() -> None:
    assert messages_for_people.round_sentence({"round": 2}, 5, 0.0) == "round 2/5 done"
    assert messages_for_people.round_sentence({"round": 2, "loss": 0.25}, 5, 0.0) == "round 2/5 done, loss 0.250"
    skipped = messages_for_people.round_sentence({"round": 2, "skipped": 3}, 5, 0.0)
    assert skipped == "round 2/5 done, 3 batches without a finite loss were skipped"
    found = Found(records=(record(A, loss=0.0, step=9),))
    assert status_table.row(found, found.records[0])[5] == "-"
    assert status_table.to_plain(found)["peers"][0]["loss"] is None


def test_a_link_that_took_no_time_has_no_figure() -> None:
    assert words.link_rate(838_861.0) == "is too fast to measure"
    assert [words.link_rate(mbit_s) for mbit_s in (94.1, 2500.0, 0.96)] == [
        "carries 94 Mbit/s",
        "carries 2,500 Mbit/s",
        "carries 0.96 Mbit/s",
    ]
