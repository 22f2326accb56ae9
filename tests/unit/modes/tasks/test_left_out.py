"""A harvest without some devices: their contributions are gone, who is unknown is an error that says who is there."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from p2ptrain.config import DataConfig, GroupConfig, Job, ModelConfig
from p2ptrain.core.harvest import Collected, Snapshot
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.errors import UserError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.learning.averaging import weighted_mean
from p2ptrain.modes.tasks.harvest import fetch
from p2ptrain.modes.tasks.head.blob import pack_head
from p2ptrain.modes.tasks.head.verdict import Verdict
from p2ptrain.modes.tasks.head.verdict_words import left_out_line, verdict_lines, verdict_plain
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.runtime import report
from p2ptrain.runtime.harvest import assemble, leave_out
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import SnapshotRef

DATA = DataConfig(("a", "b", "c", "d"), (1, 12, 12), mean=(0.4,), std=(0.3,))
NAMES = tuple(PeerId(letter * 16) for letter in "abcd")
CALLED = dict(zip(NAMES, ("desk", "laptop", "board", "board"), strict=True))


@dataclasses.dataclass
class Named:
    """As much of a record as a harvest looks at."""

    name: str
    job: str = "another"  # so it tells nothing of this one's model


def collected(mode: str, robust: str = "clip", bad: float = 1.0) -> Collected:
    """Copies of four devices; the last one's numbers are ``bad`` times as large."""
    work = Job(mode=mode, data=DATA, model=ModelConfig("lenet"), group=GroupConfig(robust=robust))  # type: ignore[arg-type]
    plan = first_plan(work, [PeerSnapshot(name, 1e9, 0, (9,) * 4, ()) for name in NAMES], NAMES[0])
    parts, found = Parts(work, plan), {}
    for seed, name in enumerate(NAMES):
        index = plan.trainers()[name]
        torch.manual_seed(seed)
        state = {n: t + 0.01 * torch.randn(t.shape) for n, t in parts.submodel(index).state_dict().items()}
        state = {n: t * (bad if name == NAMES[3] else 1.0) for n, t in state.items()}
        found.setdefault(index, []).append(snapshot(plan, index, name, state))
    records: Any = {name: Named(called) for name, called in CALLED.items()}
    return Collected(work, plan, found, None, records)


def snapshot(plan: Plan, part: int, name: PeerId, state: dict[str, Tensor]) -> Snapshot:
    data = save({f"model.{n}": t.contiguous() for n, t in state.items()}, {"partition": plan.partition})
    place = NAMES.index(name)
    where = {"part": part, "trainer": name, "epoch": 1, "round": 10, "step": 5, "samples": 10 + place}
    return Snapshot(SnapshotRef(**where, blob=BlobId(f"{place:064x}"), num_bytes=len(data)), data)  # type: ignore[arg-type]


def states(of: Collected) -> dict[PeerId, tuple[float, dict[str, Tensor]]]:
    from p2ptrain.learning.snapshots import model_state, read_snapshot

    copies = [each for snapshots in of.parts.values() for each in snapshots]
    return {c.holding.trainer: (float(c.holding.samples), model_state(read_snapshot(c.data)[0])) for c in copies}


def test_the_mean_is_of_the_others() -> None:
    everyone = collected("replicas", robust="none", bad=50.0)
    harvest = assemble(leave_out(everyone, [NAMES[3]]))
    expected = weighted_mean([copy for name, copy in states(everyone).items() if name != NAMES[3]])
    assert all(torch.equal(harvest.state[name], tensor) for name, tensor in expected.items())
    assert harvest.left_out == {"board dddddd": "as asked"} and harvest.missing == ()
    assert "LEFT OUT: board dddddd, as asked" in report.render(harvest)
    plain = report.to_plain(harvest)
    assert plain["left_out"] == {"board dddddd": "as asked"} and plain["parts"][0]["samples"] == 33


def test_a_name_will_do_where_it_is_of_one() -> None:
    everyone = collected("replicas")
    assert leave_out(everyone, ["laptop", NAMES[2]]).without == {NAMES[1], NAMES[2]}
    assert leave_out(everyone, []) is everyone
    with pytest.raises(UserError, match=r"--without phone: nobody here .*desk \(a+\), laptop .*board"):
        leave_out(everyone, ["phone"])
    with pytest.raises(UserError, match="--without board: several devices have that name"):
        leave_out(everyone, ["board"])
    assert leave_out(everyone, ["board dddddd"]).without == {NAMES[3]}, "as it is called everywhere"
    with pytest.raises(UserError, match="nothing is left"):
        leave_out(everyone, list(NAMES))


def test_without_a_sub_model_the_others_vote() -> None:
    everyone = collected("tasks")
    gone = everyone.plan.trainers()[NAMES[3]]
    assert len(everyone.plan.parts) == 4 and everyone.plan.body.combine == "sum"  # type: ignore[attr-defined]
    harvest = assemble(leave_out(everyone, [NAMES[3]]))
    parts = Parts(everyone.job, everyone.plan)
    others = {everyone.plan.trainers()[name]: [copy] for name, copy in states(everyone).items() if name != NAMES[3]}
    expected = parts.assemble(others)
    assert all(torch.equal(harvest.state[name], tensor) for name, tensor in expected.items())
    assert harvest.missing == () and gone not in harvest.parts and "MISSING" not in report.render(harvest)
    head = parts.head_without([gone], {i: parts.head_of(own) for i, own in harvest.parts.items()}, {})
    assert torch.equal(head.weight, expected[f"{parts.head}.weight"].float())


def test_unsound_copies_are_left_out_and_said() -> None:
    everyone = collected("replicas", bad=float("nan"))
    harvest = assemble(everyone)
    assert list(harvest.left_out) == ["board dddddd"] and "no number" in harvest.left_out["board dddddd"]
    assert all(bool(tensor.isfinite().all()) for tensor in harvest.state.values())
    with pytest.raises(UserError, match=r"no copy of part 3 is sound .*board.*--without"):
        assemble(collected("tasks", bad=float("nan")))


@pytest.mark.parametrize("robust", ["clip", "trimmed-mean", "median"])
def test_one_bad_copy_of_four_moves_the_harvest_little(robust: str) -> None:
    bad, good = assemble(collected("replicas", robust, bad=-80.0)), assemble(collected("replicas", robust))
    for name, tensor in good.state.items():
        assert float((bad.state[name] - tensor).norm()) < 0.06 * tensor.numel() ** 0.5


def test_a_head_that_leaves_out_parts_hides_no_copies() -> None:
    """It is one that a single member made up, or the other parts' copies are only said to be there."""
    everyone = collected("tasks")
    parts = [each.holding for copies in everyone.parts.values() for each in copies]
    lone = pack_head(tensorfile.pack({"weight": np.ones(3, np.float32)}), (parts[0],))
    head = dataclasses.replace(parts[0], kind="head", blob=blob_id(lone), epoch=2)
    data = {each.holding.blob: each.data for copies in everyone.parts.values() for each in copies} | {head.blob: lone}

    async def get(holding: SnapshotRef, what: str) -> bytes | None:
        return data.get(holding.blob)

    result, found = asyncio.run(fetch(everyone.plan, [*parts, head], get))
    assert result is None and found == dict(everyone.parts)
    for each in parts[1:]:
        del data[each.blob]
    result, found = asyncio.run(fetch(everyone.plan, [*parts, head], get))
    assert result is not None and result.holding == head and list(found) == [parts[0].part]


# --- who makes the model worse ---


def verdict(without: int, own: int) -> Verdict:
    """Of 100 samples 70 are right with all; ``own``: those that the last device's own copy gets right."""
    within = {name: ((100,), (own if name == NAMES[3] else 90,), (70,)) for name in NAMES}
    return Verdict(
        (100,), {"joined": (70,)}, within, 400, {name: (without if name == NAMES[3] else 69,) for name in NAMES}
    )


def test_who_makes_the_model_worse_is_named() -> None:
    (spoils,) = verdict(without=95, own=12).spoilers()
    assert (spoils.peer, spoils.is_worse, spoils.own_accuracy) == (NAMES[3], True, 0.12)
    lines = verdict_lines(verdict(95, 12), collected("replicas").plan, ["a"], lambda peer: CALLED[peer])
    assert any("board MAKES THE MODEL WORSE" in line and "--without board" in line for line in lines)
    plain = verdict_plain(verdict(95, 12), ["a"], lambda peer: CALLED[peer])
    assert plain["spoilers"] == [{"peer": NAMES[3], "name": "board", "makes_worse": True}]
    assert plain["contributions"][0] == {
        "peer": NAMES[0],
        "name": "desk",
        "own_accuracy": 0.9,
        "accuracy_without": 0.69,
    }
    assert "95" in left_out_line(verdict(95, 12), {NAMES[3]}) and "70" in left_out_line(verdict(95, 12), {NAMES[3]})
    assert "--data" in left_out_line(verdict(95, 12), set(NAMES[2:]))


def test_who_does_no_harm_but_knows_little_is_named_too() -> None:
    (spoils,) = verdict(without=71, own=12).spoilers()
    assert not spoils.is_worse
    lines = verdict_lines(verdict(71, 12), collected("replicas").plan, ["a"], lambda peer: CALLED[peer])
    assert any("WHAT board TRAINED KNOWS LITTLE" in line for line in lines)


def test_honest_ones_are_not_named() -> None:
    assert verdict(without=72, own=80).spoilers() == []
    assert Verdict((0,), {"joined": (0,)}, {}, 0, {NAMES[0]: (0,)}).spoilers() == []


@pytest.mark.parametrize("mode", ["pipeline", "split"])
def test_modes_that_mix_all_contributions_say_so(mode: str) -> None:
    everyone = collected("replicas")
    other = dataclasses.replace(everyone, job=dataclasses.replace(everyone.job, mode=mode))
    with pytest.raises(UserError, match="nobody's contribution can be taken out"):
        leave_out(other, ["desk"])


# --- parts that are left out unasked ---


def votes(own: int, joined: int, without: int, others_without: int | None = None, samples: int = 140) -> Verdict:
    """Of four class sub-models; ``own`` right answers of the last one's, ``without`` of all but it."""
    rest = joined - 1 if others_without is None else others_without
    rows = {"joined": joined, **{f"part-{p}": 125 for p in range(3)}, "part-3": own}
    rows |= {**{f"without-{p}": rest for p in range(3)}, "without-3": without}
    return Verdict((samples,), {name: (right,) for name, right in rows.items()}, {}, 400)


@pytest.mark.parametrize("joined, without", [(130, 130), (130, 128), (125, 135)])
def test_a_part_that_knows_little_by_itself_gets_no_vote(joined: int, without: int) -> None:
    """Even where that shows in a sample or two, or in none: here its noise did no harm, elsewhere it does."""
    found = votes(own=14, joined=joined, without=without)
    assert found.doubt is not None and (found.doubt.part, found.doubt.why) == (3, "knows little")
    assert found.chosen == "without-3"


def test_a_part_that_outvotes_all_others_gets_no_vote() -> None:
    """Its numbers are so large that nobody else's vote changes anything: the model is that part alone."""
    found = votes(own=128, joined=128, others_without=128, without=130)
    assert found.doubt is not None and (found.doubt.part, found.doubt.why) == (3, "outvotes")
    assert found.chosen == "without-3"
    plan = collected("tasks").plan
    (line, *_) = verdict_lines(found, plan, ["a"], lambda peer: CALLED[peer])
    who = CALLED[plan.parts[3].trainers[0]]
    assert f"without the part of {who}, which outvotes all others together" in line


@pytest.mark.parametrize(
    "own, joined, without, others_without",
    [
        (120, 132, 131, 130),  # as honest ones are
        (14, 135, 110, 134),  # it knows little, and without it the model is clearly worse
        (128, 128, 110, 128),  # it is the model, and rightly so
        (128, 128, 130, 127),  # as good as all together, but others have a say
    ],
)
def test_a_part_that_is_of_use_keeps_its_vote(own: int, joined: int, without: int, others_without: int) -> None:
    found = votes(own, joined, without, others_without)
    assert found.doubt is None and found.chosen == "joined"


def test_of_two_parts_nobody_can_tell_which_is_wrong() -> None:
    rows = {"joined": 130, "part-0": 14, "part-1": 130, "without-0": 130, "without-1": 14}
    assert Verdict((140,), {name: (right,) for name, right in rows.items()}, {}, 400).doubt is None
    assert Verdict((0,), {name: (0,) for name in rows}, {}, 400).doubt is None
