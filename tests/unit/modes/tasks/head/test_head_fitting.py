"""A peer's share of the head fit: the mean of copies, counts on validation samples, and what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.core.harvest import Collected, MisfitError, Snapshot
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.errors import RemoteError
from p2ptrain.ids import PeerId, blob_id
from p2ptrain.learning import candidates, validation
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.head_fit import plain_head
from p2ptrain.modes.tasks import words
from p2ptrain.modes.tasks.commands import Contribute, FeaturesExtracted
from p2ptrain.modes.tasks.config import TasksConfig, tasks_of
from p2ptrain.modes.tasks.harvest import assemble
from p2ptrain.modes.tasks.head.blob import pack_head
from p2ptrain.modes.tasks.head.fitting import HeadFitting
from p2ptrain.modes.tasks.head.verdict import Verdict, read_verdict
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan
from p2ptrain.modes.tasks.worker import TasksWorker
from p2ptrain.wire import tensorfile
from p2ptrain.wire.messages import SnapshotRef

SHAPE = (1, 12, 12)
CLASSES = ("a", "b", "c", "d")
DATA = DataConfig(CLASSES, SHAPE, mean=(0.4,), std=(0.3,))
HAVE = ((20, 20, 20, 20), (20, 20, 0, 0))
"""Samples of two peers: one has all classes, the other two of them."""
NAMES = tuple(f"peer{number:012d}" for number in range(3))


def job(mode: str = "tasks", **tasks: Any) -> Job:
    return Job(mode=mode, data=DATA, model=ModelConfig("lenet"), tables=(TasksConfig(head_fit_steps=20, **tasks),))  # type: ignore[arg-type]


def plan_of(work: Job, have: Sequence[Sequence[int]] = HAVE) -> Plan:
    peers = [PeerSnapshot(name, 1e9, 0, tuple(counts), ()) for name, counts in zip(NAMES, have, strict=False)]  # type: ignore[arg-type]
    return first_plan(work, peers, peers[0].peer)


def samples(counts: Sequence[int], seed: int) -> Dataset:
    """Each class is bright in a corner of its own."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    x = rng.integers(0, 120, (len(y), *SHAPE), dtype=np.uint8)
    for i, label in enumerate(y):
        row, column = 6 * (label // 2), 6 * (label % 2)
        x[i, 0, row : row + 6, column : column + 6] += 90
    return Dataset(x, y.astype(np.int64), DATA)


def states(parts: Parts, seed: int) -> dict[int, dict[str, Tensor]]:
    """Sub-models as they might be after training."""
    made = {}
    for part in range(len(parts.plan.parts)):
        torch.manual_seed(seed + part)
        model = parts.submodel(part)
        made[part] = {
            name: tensor + 0.05 * torch.randn(tensor.shape) if tensor.is_floating_point() and tensor.dim() else tensor
            for name, tensor in model.state_dict().items()
        }
    return made


class Group:
    """All peers of a plan, without a network."""

    def __init__(
        self, work: Job, have: Sequence[Sequence[int]] = HAVE, val: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.job, self.plan = work, plan_of(work, have)
        self.parts = Parts(work, self.plan)
        self.states = states(self.parts, 5)
        self.val = [samples(counts, 100 + i) for i, counts in enumerate(val or have)]
        self.peers = [
            HeadFitting(work, Parts(work, self.plan), "session", samples(counts, i), self.val[i])
            for i, counts in enumerate(have)
        ]
        for peer in self.peers:
            for part, state in self.states.items():
                trainer = (self.plan.parts[part].trainers or (NAMES[2],))[0]
                peer.add_copy(part, trainer, state, 1.0, last=True)

    def run(self) -> dict[str, Tensor]:
        """The last state."""
        steps = (1 + tasks_of(self.job).head_fit_steps if self.plan.body.fit_head else 0) + 1
        state: dict[str, Tensor] = {}
        for step in range(steps):
            state = self.peers[0].combine(step, state, [peer.contribute(step, state) for peer in self.peers])
        return state

    def verdict(self) -> Verdict:
        found = read_verdict(tensorfile.pack({name: tensor.numpy() for name, tensor in self.run().items()}))
        assert found is not None
        return found


def test_the_counts_are_those_of_the_assembled_model() -> None:
    """What the group says of itself is what anybody finds who runs the harvested model over those samples."""
    group = Group(job())
    assert group.plan.body.fit_head and group.plan.mode == "tasks" and len(group.plan.parts) == 2
    state = group.run()
    whole = group.parts.with_head(
        group.parts.assemble({part: [(1.0, own)] for part, own in group.states.items()}), plain_head(state)
    )
    group.parts.model.load_state_dict(whole)
    for name, head in ((candidates.FITTED, whole), (candidates.JOINED, None)):
        if head is None:
            joined = group.parts.assemble({part: [(1.0, own)] for part, own in group.states.items()})
            group.parts.model.load_state_dict(joined)
        expected = np.zeros(len(CLASSES))
        for data in group.val:
            found = evaluate(group.parts.model, [data.tensors()], len(CLASSES))
            expected += np.diagonal(found.confusion)
        assert state[candidates.CORRECT + name].tolist() == expected.tolist()
    assert state[candidates.TOTAL].tolist() == [40, 40, 20, 20]
    assert state[candidates.SAMPLES].tolist() == [120]


def test_a_part_alone_is_its_sub_model() -> None:
    """Asked among its own classes it answers as the sub-model that was trained on them; of others it takes none.

    So it is no candidate for the whole model, which would give those up.
    """
    group = Group(job())
    narrow = next(part.index for part in group.plan.parts if part.trainers == (NAMES[1],))
    state, model = group.run(), group.parts.submodel(narrow).eval()
    model.load_state_dict(group.states[narrow])
    right = torch.zeros(len(CLASSES))
    for data in group.val:
        x, y = data.tensors()
        answers = model(x)[:, :2].argmax(1)
        right += torch.bincount(y[(answers == y) & (y < 2)], minlength=len(CLASSES))
    assert state[candidates.WITHIN + NAMES[1]][0].tolist() == [40, 40, 0, 0]
    assert state[candidates.WITHIN + NAMES[1]][1].tolist() == right.tolist()
    assert candidates.CORRECT + candidates.alone(narrow) not in state
    assert candidates.CORRECT + candidates.alone(1 - narrow) in state, "that part knows all classes"
    head, classes = group.parts.head_alone(narrow, group.parts.head_of(group.states[narrow]))
    assert classes == (0, 1) and bool((head.bias[2:] == validation.UNKNOWN).all())


def test_counts_of_two_are_those_of_one_with_all_samples() -> None:
    group, together = Group(job(fit_head="always")), Group(job(fit_head="always"), [(40, 40, 20, 20), (0, 0, 0, 0)])
    assert group.run()[candidates.TOTAL].tolist() == together.run()[candidates.TOTAL].tolist()


def test_copies_of_a_part_are_averaged_by_weight() -> None:
    work = job("replicas", fit_head="always")
    plan = plan_of(work, [(9, 9, 9, 9)] * 2)
    parts = Parts(work, plan)
    copies = [states(parts, seed)[0] for seed in (1, 2, 3)]
    weights = [10.0, 20.0, 50.0]
    mean = {
        name: sum(weight * copy[name] for weight, copy in zip(weights, copies, strict=True)) / 80.0
        if tensor.is_floating_point()
        else tensor
        for name, tensor in copies[0].items()
    }
    data = samples((9, 9, 9, 9), 0)
    apart, whole = (HeadFitting(work, Parts(work, plan), "session", data, data) for _ in range(2))
    for number, (weight, copy) in enumerate(zip(weights, copies, strict=True)):
        apart.add_copy(0, NAMES[number], copy, weight, last=number == 2)
    whole.add_copy(0, NAMES[0], mean, 1.0, last=True)  # type: ignore[arg-type]
    for name, tensor in apart.contribute(0, {})[1].items():
        torch.testing.assert_close(tensor, whole.contribute(0, {})[1][name], rtol=1e-4, atol=1e-4)
    with pytest.raises(RemoteError, match=r"part 0 of .* came twice"):
        apart.add_copy(0, NAMES[0], copies[0], 1.0, last=True)


def test_who_changed_its_part_has_left_a_copy_of_the_former_one() -> None:
    """Both copies count; as a member it is judged by the part that the plan gives it."""
    group = Group(job())
    (own,) = (part.index for part in group.plan.parts if NAMES[1] in part.trainers)
    data = samples((9, 9, 9, 9), 0)
    right = {}
    for order in ((own, 1 - own), (1 - own, own)):
        fit = HeadFitting(group.job, Parts(group.job, group.plan), "session", data, data)
        for part in order:
            fit.add_copy(part, NAMES[1], group.states[part], 1.0, last=True)
        right[order] = fit._members[NAMES[1]].right.tolist()
    assert len(set(map(tuple, right.values()))) == 1
    assert fit.contribute(0, {})[0] == 36


def test_an_answer_that_is_no_number_is_wrong() -> None:
    logits = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [0.0, torch.nan]])
    assert validation.among(logits, torch.tensor([0, 0, 1]), (0, 1)).tolist() == [1, 0]


def test_where_nothing_is_fitted_the_group_only_looks() -> None:
    group = Group(job(), [(9, 9, 9, 9), (9, 9, 9, 9)])
    assert not group.plan.body.fit_head and group.peers[0].kind(0) == "validation"
    found = group.verdict()
    assert found.samples == 72 and candidates.FITTED not in found.correct
    assert set(found.order) == {candidates.JOINED, candidates.alone(0), candidates.alone(1)}


def test_a_replica_is_looked_at_as_it_is() -> None:
    group = Group(job("replicas"), [(9, 9, 9, 9), (9, 9, 9, 9)])
    found = group.verdict()
    model = group.parts.model
    model.load_state_dict(group.states[0])
    right = sum(np.diagonal(evaluate(model, [data.tensors()], 4).confusion) for data in group.val)
    assert found.order == [candidates.JOINED] and list(found.correct[candidates.JOINED]) == list(right)


def learnt(parts: Parts, data: Dataset) -> dict[str, Tensor]:
    """A whole model that knows these samples."""
    torch.manual_seed(1)
    model = parts.submodel(0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = data.tensors()
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("fit_head", ["never", "always"])
def test_the_copy_of_one_member_is_taken_where_it_is_clearly_better_than_the_mean(fit_head: str) -> None:
    """One device knows the classes, the other's copy is noise, and so is their mean. What is harvested is the copy that
    knows them, to the bit, and it is said whose it is. A copy that lacks a class is none to take."""
    have = [(30, 30, 30, 30)] * 2
    work = job("replicas", fit_head=fit_head)
    plan = plan_of(work, have)
    parts = Parts(work, plan)
    data = [samples(counts, i) for i, counts in enumerate(have)]
    good, noise = learnt(parts, data[0]), {n: t + torch.randn_like(t) for n, t in states(parts, 3)[0].items()}
    fits = [HeadFitting(work, Parts(work, plan), "session", own, own) for own in data]
    for fit in fits:
        fit.add_copy(0, NAMES[0], noise, 120.0, last=False)
        fit.add_copy(0, NAMES[1], good, 120.0, last=True)
    state: dict[str, Tensor] = {}
    for step in range((1 + tasks_of(work).head_fit_steps if plan.body.fit_head else 0) + 1):  # type: ignore[attr-defined]
        state = fits[0].combine(step, state, [fit.contribute(step, state) for fit in fits])
    packed = tensorfile.pack({name: tensor.numpy() for name, tensor in state.items()})
    found = read_verdict(packed)
    assert found is not None and found.chosen == candidates.copy_of(NAMES[1]) and found.worse() == []
    model = parts.submodel(0)
    model.load_state_dict(good)
    right = sum(np.diagonal(evaluate(model, [own.tensors()], 4).confusion) for own in data)
    assert list(found.correct[found.chosen]) == list(right)
    refs = tuple(SnapshotRef(0, name, 1, 1, 1, 120, blob_id(name.encode()), 1) for name in NAMES[:2])  # type: ignore[arg-type]
    copies = [
        Snapshot(ref, save({f"model.{n}": t for n, t in own.items()}, {"partition": plan.partition}))
        for ref, own in zip(refs, (noise, good), strict=True)
    ]
    head = Snapshot(refs[0], pack_head(packed, refs))
    taken = assemble(Collected(work, plan, {0: copies}, head, {}), allow_user_code=False)
    assert all(torch.equal(taken.state[name], tensor) for name, tensor in good.items())
    (line, *_) = words.harvest_lines(taken)
    assert f"by what {NAMES[1]} trained alone: the mean of all devices' copies gets less" in line
    assert words.harvest_plain(taken)["validation"]["head"] == f"copy-{NAMES[1]}"
    made_up = Snapshot(refs[0], pack_head(tensorfile.pack({"weight": np.ones(3, np.float32)}), refs))
    for lone, found_copies, says in ((head, copies[:1], "not among those found"), (made_up, copies, "is of no fit")):
        with pytest.raises(MisfitError, match=says) as misfit:  # another one may do
            assemble(Collected(work, plan, {0: found_copies}, lone, {}), allow_user_code=False)
        assert misfit.value.holdings == (refs[0],)


def test_a_copy_that_lacks_a_class_of_others_is_not_taken() -> None:
    work = job("replicas", fit_head="never")
    have = [(30, 30, 30, 30), (30, 30, 0, 0)]
    plan = plan_of(work, have)
    own = samples((30, 30, 3, 3), 0)
    fit = HeadFitting(work, Parts(work, plan), "session", own, own)
    fit.add_copy(0, NAMES[0], states(fit._parts, 3)[0], 1.0, last=False)
    fit.add_copy(0, NAMES[1], learnt(fit._parts, samples((30, 30, 0, 0), 0)), 1.0, last=True)
    counts = fit.contribute(0, {})[1]
    assert candidates.CORRECT + candidates.copy_of(NAMES[1]) not in counts
    assert candidates.CORRECT + candidates.copy_of(NAMES[0]) in counts


def test_nobody_has_validation_samples() -> None:
    group = Group(job(), val=[(0, 0, 0, 0), (0, 0, 0, 0)])
    found = group.verdict()
    assert found.samples == 0 and found.chosen == candidates.FITTED and not found.worse() and found.best_member is None


def test_a_class_whose_only_holder_is_gone_keeps_what_was_learnt() -> None:
    """The fit sees no sample of class d: its weights stay its part's, and the others are fitted without it."""
    group = Group(job(), [(20, 20, 20, 0), (20, 20, 0, 0)])
    state = group.run()
    assert state["class_weight"].tolist()[3] == 0
    joined = group.parts.joined_head({part: group.parts.head_of(own) for part, own in group.states.items()})
    fitted = plain_head(state)
    torch.testing.assert_close(fitted["weight"][3], joined["weight"][3], rtol=1e-3, atol=1e-4)
    assert fitted["bias"][3] < joined["bias"][3] + 1e-3
    assert not torch.allclose(fitted["weight"][:3], joined["weight"][:3], rtol=1e-2)


# --- what can't be counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda sums: sums.pop(candidates.TOTAL),
        lambda sums: sums.update({candidates.CORRECT + candidates.JOINED: torch.full((4,), 99.0, dtype=torch.float64)}),
        lambda sums: sums.update({candidates.TOTAL: -sums[candidates.TOTAL]}),
        lambda sums: sums.update({candidates.TOTAL: sums[candidates.TOTAL].float()}),
        lambda sums: sums.update({candidates.TOTAL: sums[candidates.TOTAL] * torch.nan}),
        lambda sums: sums.update({"weight": torch.zeros(4, dtype=torch.float64)}),
    ],
)
def test_what_is_no_count_is_refused_and_the_others_are_taken(change: Any) -> None:
    group = Group(job(), [(9, 9, 9, 9), (9, 9, 9, 9)])
    sums = [peer.contribute(0, {}) for peer in group.peers]
    bad = dict(sums[1][1])
    change(bad)
    with pytest.raises(RemoteError):
        group.peers[0].combine(0, {}, [(18, bad)])
    alone = group.peers[0].combine_sound(0, {}, [sums[0], (18, bad)])
    assert alone[candidates.TOTAL].tolist() == sums[0][1][candidates.TOTAL].tolist()


# --- the verdict ------------------------------------------------------------------------------------------------------

TOTALS = (100, 100, 50, 50)
TWO = (100, 100, 0, 0)
A, B = map(PeerId, NAMES[:2])


def verdict(**changes: Any) -> Verdict:
    base = Verdict(
        totals=TOTALS,
        correct={candidates.FITTED: (70, 60, 30, 30), candidates.JOINED: (50, 50, 30, 30)},
        within={A: (TOTALS, (60, 60, 25, 25), (70, 60, 30, 30)), B: (TWO, (80, 90, 0, 0), (78, 70, 0, 0))},
        train_samples=2700,
    )
    return dataclasses.replace(base, **changes)


def test_the_first_candidate_is_taken_unless_another_is_clearly_better() -> None:
    """Of 300 samples a standard error is 11 to 12."""
    assert verdict().chosen == candidates.FITTED and verdict().accuracy() == pytest.approx(190 / 300)
    better = verdict().correct | {candidates.alone(1): (100, 100, 5, 0), candidates.alone(2): (100, 100, 3, 0)}
    assert verdict(correct=better).chosen == candidates.alone(1)
    by_chance = verdict().correct | {candidates.alone(1): (100, 100, 0, 0)}
    assert verdict(correct=by_chance).chosen == candidates.FITTED


def test_where_the_group_made_it_worse_is_said_with_the_classes() -> None:
    """B alone knows 170 of 200 among its two classes, the group's model 148; by chance that is not, on the second."""
    (worse,) = verdict().worse()
    assert (worse.peer, worse.classes) == (B, (1,))
    assert (worse.own_accuracy, worse.group_accuracy) == (0.85, 0.74)
    assert verdict().best_member == (A, pytest.approx(170 / 300), pytest.approx(190 / 300))
    fine = {A: (TOTALS, (60, 60, 25, 25), (70, 60, 30, 30))}
    assert verdict(within=fine).worse() == []
    chance = {B: (TWO, (80, 72, 0, 0), (78, 70, 0, 0))}
    assert verdict(within=chance).worse() == []


@pytest.mark.parametrize(
    "arrays",
    [
        {candidates.TOTAL: np.array([1.0, 2.0])},
        {candidates.TOTAL: np.array([1.0]), f"{candidates.CORRECT}mine": np.array([1.0])},
        {candidates.TOTAL: np.array([1.0]), f"{candidates.CORRECT}joined": np.array([2.0])},
        {candidates.TOTAL: np.array([1.0]), f"{candidates.CORRECT}joined": np.array([1.0, 1.0])},
        {candidates.TOTAL: np.array([-1.0]), f"{candidates.CORRECT}joined": np.array([0.0])},
        {candidates.TOTAL: np.array([np.nan]), f"{candidates.CORRECT}joined": np.array([0.0])},
        {
            candidates.TOTAL: np.array([1.0]),
            f"{candidates.CORRECT}joined": np.array([1.0]),
            f"{candidates.WITHIN}x": np.zeros((3, 1)),
        },
        {
            candidates.TOTAL: np.array([1.0]),
            f"{candidates.CORRECT}joined": np.array([1.0]),
            candidates.WITHIN + NAMES[0]: np.zeros((2, 1)),
        },
    ],
)
def test_a_head_that_says_nonsense_is_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(RemoteError):
        read_verdict(tensorfile.pack(arrays))


def test_a_head_of_before_says_nothing() -> None:
    assert read_verdict(tensorfile.pack({"weight": np.zeros((2, 2))})) is None


def test_who_has_no_features_says_so_when_asked_so_that_nobody_waits_for_it() -> None:
    said: list[object] = []
    worker: Any = SimpleNamespace(_fitting=None, _say=said.append)
    TasksWorker._contribute(worker, Contribute("one", 3, b""))
    assert said == [FeaturesExtracted("one", 0)]
