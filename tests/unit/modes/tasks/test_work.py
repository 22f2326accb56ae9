"""What a device computes is counted as torch counts it, and stays within the budget, the last layer's fit included."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import PeerSnapshot, Plan
from p2ptrain.errors import JobError, UserError
from p2ptrain.ids import PeerId
from p2ptrain.learning.blocks.flops import Flops, flop_counter
from p2ptrain.learning.data import Dataset
from p2ptrain.learning.snapshots import read_snapshot, write
from p2ptrain.learning.work import Work, central_flops, fewest_samples
from p2ptrain.modes.jobs import check_job
from p2ptrain.modes.tasks import words
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.modes.tasks.head.fitting import HeadFitting
from p2ptrain.modes.tasks.parts import Parts
from p2ptrain.modes.tasks.planning.assignment import first_plan, notes
from p2ptrain.modes.tasks.planning.budget import end_flops
from p2ptrain.modes.tasks.training import PartTraining

SHAPE = (1, 12, 12)
DATA = DataConfig(("a", "b", "c", "d"), SHAPE, mean=(0.4,), std=(0.3,))
NAMES = tuple(PeerId(f"peer{number:012d}") for number in range(4))
ROUNDS, BATCH, NUM, NUM_VAL, FIT_STEPS = 2, 8, 80, 24, 5


def job(*, width: float = 1.0, rounds: int = ROUNDS, **tasks: Any) -> Job:
    config = TrainingConfig(rounds=rounds, batch_size=BATCH)
    table = TasksConfig(**({"head_fit_steps": FIT_STEPS, "fit_head": "always"} | tasks))
    return Job(data=DATA, model=ModelConfig("lenet", width), training=config, tables=(table,))


def samples(num: int, classes: int = 4) -> Dataset:
    rng = np.random.default_rng(num)
    return Dataset(rng.integers(0, 256, (num, *SHAPE), dtype=np.uint8), np.arange(num) % classes, DATA)


def planned(work: Job, speeds: tuple[float, ...] = (1e9,) * 4, data: Dataset | None = None) -> Plan:
    counts = tuple((data or samples(NUM)).counts().tolist())
    return first_plan(work, [PeerSnapshot(n, s, 0, counts, ()) for n, s in zip(NAMES, speeds, strict=False)], NAMES[0])


def whole_run(work: Job, plan: Plan, name: PeerId, parts: Parts) -> Work:
    """One device from the first step to the last look at the head, as its trainer does it."""
    done = Work()
    one = PartTraining(work, parts, plan.trainers()[name], samples(NUM), name, val=samples(NUM_VAL), work=done)
    while not one.finished:
        if one.step():
            one.accuracy()
    one.work_flops()
    fit = HeadFitting(work, parts, "s", samples(NUM), samples(NUM_VAL), work=done)
    for part in plan.parts:
        for trainer in part.trainers:
            own = dict(parts.submodel(part.index).state_dict())
            fit.add_copy(part.index, trainer, own, 1.0, last=trainer == part.trainers[-1])
    state: dict[str, torch.Tensor] = {}
    for step in range(FIT_STEPS + 2):
        state = fit.combine(step, state, [fit.contribute(step, state)])
    return done


@pytest.mark.parametrize(("peers", "groups"), [(2, 2), (4, 2)], ids=["a part each", "two peers a part"])
def test_work_is_what_torch_counts(peers: int, groups: int) -> None:
    """But for what torch does not count: eigenvectors."""
    work = job(num_groups=groups, passes=2.0)
    plan = planned(work, (1e9,) * peers)
    parts = Parts(work, plan)
    size = parts.model.state_dict()[f"{parts.head}.weight"].shape[1]
    costs = [parts.whole_flops(), *(parts.flops(index) for index in range(groups))]  # to count them is no work
    with flop_counter() as counter:
        done = whole_run(work, plan, NAMES[0], parts)
    assert all(cost.total for cost in costs)
    assert done.flops - 9 * size**3 == pytest.approx(counter.get_total_flops(), rel=1e-4)


def test_a_device_stays_within_its_budget() -> None:
    """Also where the last layer costs much of it; and it uses nearly all."""
    for budget, rounds in ((1 / 11.8, 12), (0.25, 4)):
        work = job(width=2.0, rounds=rounds, budget=budget, passes=0.0)
        parts = Parts(work, planned(work))
        share = whole_run(work, parts.plan, NAMES[0], parts).flops / parts.central_flops()
        assert 0.9 * budget < share <= budget


def test_what_ends_is_foreseen() -> None:
    """The fit and the looks after the last round cost about what the budget sets aside."""
    work = job(width=2.0)
    plan = planned(work)
    parts = Parts(work, plan)
    done = whole_run(work, plan, NAMES[0], parts)
    one = PartTraining(work, parts, plan.trainers()[NAMES[0]], samples(NUM), NAMES[0], val=samples(NUM_VAL))
    while not one.finished:
        if one.step():
            one.accuracy()
    ended = done.flops - one.work_flops()
    assert ended == pytest.approx(end_flops(work, parts, NUM, NUM_VAL), rel=0.1)


def test_a_budget_that_does_not_pay_for_a_step_is_refused() -> None:
    work = job(rounds=1, budget=0.03, passes=0.0)
    parts = Parts(work, planned(work))
    with pytest.raises(UserError, match=r"tasks\.budget: 0\.03 of central training's .* or make narrower parts"):
        PartTraining(work, parts, 0, samples(NUM), NAMES[0], val=samples(NUM_VAL))


def test_a_budget_that_can_not_be_kept_is_said() -> None:
    work = dataclasses.replace(job(budget=0.1), mode="auto")
    plan = first_plan(work, [PeerSnapshot(NAMES[0], 1e9, 0, (9,) * 4, ())], NAMES[0])
    assert plan.mode == "replicas" and "tasks.budget is not kept" in " ".join(notes(work, plan))
    assert "tasks.budget" not in " ".join(notes(work, planned(job(budget=0.1))))


def test_who_is_slower_spends_less_but_a_pass_at_least() -> None:
    work = job(width=2.0, budget=0.25, passes=0.0)
    plan = planned(work, (8e9, 8e9, 8e9, 1e9))
    parts = Parts(work, plan)
    spent = {}
    for name in (NAMES[0], NAMES[3]):
        one = PartTraining(work, parts, plan.trainers()[name], samples(NUM), name)
        while not one.finished:
            one.step()
        spent[name] = one.work_flops()
        assert one.trainer.num_samples >= ROUNDS * NUM
    assert spent[NAMES[3]] < spent[NAMES[0]]


def test_a_budget_makes_parts_narrow() -> None:
    """Two peers could have half of the width each, which for a twelfth could not make a third of a pass."""
    wide, narrow = (planned(job(budget=budget), (1e9, 1e9)) for budget in (0.0, 1 / 12))
    assert [part.share for part in wide.parts] == [0.5, 0.5]
    assert [part.share for part in narrow.parts] == [pytest.approx((1 / 24) ** 0.5, abs=1e-5)] * 2


def test_a_job_without_a_budget_has_the_id_that_it_had() -> None:
    assert job(budget=0.0).id == job().id != job(budget=0.1).id
    assert "budget" not in job().to_json()


def test_who_has_a_part_of_the_samples_can_afford_a_wider_part() -> None:
    """A pass over half of the samples is half the work."""
    peers = [
        PeerSnapshot(n, 1e9, 0, counts, ()) for n, counts in zip(NAMES, [(9, 9, 0, 0), (0, 0, 9, 9)], strict=False)
    ]
    plan = first_plan(job(budget=1 / 12), peers, NAMES[0])
    assert [part.share for part in plan.parts] == [pytest.approx((1 / 12) ** 0.5, abs=1e-5)] * 2


def test_job_check_says_the_budget() -> None:
    assert words.job_lines(job(budget=1 / 11.8))[0] == "budget    of central training's work, on each device: 1/11.8"
    assert len(words.job_lines(job())) == 1


def test_a_budget_of_replicas_is_refused() -> None:
    with pytest.raises(JobError, match=r"tasks\.budget: 0\.1, and the whole model is trained everywhere"):
        check_job(dataclasses.replace(job(budget=0.1), mode="replicas"))


def test_work_goes_on_after_a_restart() -> None:
    work = job()
    plan = planned(work)
    parts = Parts(work, plan)
    one = PartTraining(work, parts, 0, samples(NUM), NAMES[0])
    while not one.step():
        pass
    tensors, metadata = read_snapshot(bytes(write(*one.snapshot(), None)))  # type: ignore[arg-type]
    again, other = (PartTraining(work, parts, 0, samples(NUM), NAMES[0]) for _ in range(2))
    again.restore(tensors, metadata, own=True)
    other.restore(tensors, metadata, own=False)
    assert again.work_flops() == one.work_flops() > 0 == other.work_flops()


def test_a_model_that_can_not_be_counted_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Flops:
        raise RuntimeError("needs real samples")

    monkeypatch.setattr("p2ptrain.modes.tasks.parts.training_flops", refuse)
    work = job(budget=0.1, passes=0.0)
    plan = planned(work)
    one = PartTraining(work, Parts(work, plan), 0, samples(NUM), NAMES[0])
    while not one.step():
        pass
    assert one.trainer.num_samples == NUM and one.work_flops() == one.central_flops() == 0


@pytest.mark.parametrize(
    ("counts", "fewest"),
    [([(5, 0), (0, 7)], 12), ([(5, 5), (5, 5)], 10), ([(5, 1), (), (2, 3)], 8), ([()], 0)],
    ids=["nothing in common", "the same", "one has none", "nobody has any"],
)
def test_samples_are_counted_from_below(counts: list[tuple[int, ...]], fewest: int) -> None:
    assert fewest_samples(counts) == fewest
    assert central_flops(1000, fewest, 2.5) == 2500 * fewest
