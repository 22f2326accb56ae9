"""A harvest of a pipeline of which parts were apart: one model, the same for everybody, and the other one is named."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core.harvest import Collected, MisfitError
from p2ptrain.ids import BlobId, PeerId, blob_id
from p2ptrain.learning.models import global_model
from p2ptrain.modes.pipeline import harvest
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.runtime import report
from p2ptrain.runtime.harvest import Misfits
from p2ptrain.wire.messages import SnapshotRef

JOB = Job(
    mode="pipeline",
    model=ModelConfig("lenet"),
    data=DataConfig(("a", "b"), (1, 12, 12), mean=(0.4,), std=(0.3,)),
    training=TrainingConfig(rounds=4),
)
STATE = global_model(JOB, allow_user_code=False).state_dict()
FIRST, LAST = list(STATE)[:4], list(STATE)[4:]
BODY = PipelineBody("c" * 64, PipelinePlan("m", 4, 2, 1, (Stage(0, 4, ("a",), (2,), 1),), ()), (1.0,), (), 0, 10)
NAMES = {PeerId(peer): SimpleNamespace(name=f"device {peer}", job="another") for peer in "abc"}


def plan(epoch: int) -> Any:
    return SimpleNamespace(epoch=epoch, hash=f"plan {epoch}", body=BODY, mode="pipeline", parts=())


def run(
    trainer: str, epoch: int, first: int, stop: int, names: list[str], round_: int = 4
) -> tuple[SnapshotRef, bytes]:
    """Blocks whose numbers are the epoch."""
    data = save({f"model.{name}": torch.full_like(STATE[name], epoch) for name in names})
    ref = SnapshotRef(
        first, PeerId(trainer), epoch, round_, 10 * round_, 10, BlobId(blob_id(data)), len(data), stop - first
    )
    return ref, data


def harvested(*runs: tuple[SnapshotRef, bytes], misfits: Misfits | None = None) -> Any:
    blobs = {ref.blob: data for ref, data in runs}

    async def fetch(ref: SnapshotRef, what: str) -> bytes | None:
        return None if misfits is not None and misfits.has(ref) else blobs[ref.blob]

    told = tuple(ref for ref, _ in runs)
    newest = plan(max(ref.epoch for ref in told))
    _, parts = asyncio.run(harvest.fetch(newest, told, fetch))
    known: Any = {epoch: plan(epoch) for epoch in (3, 90)}
    records: Any = NAMES
    return harvest.assemble(Collected(JOB, newest, parts, None, records, told=told, plans=known), allow_user_code=False)


def test_of_two_finished_models_it_is_that_of_more_devices_and_the_other_is_named() -> None:
    together = [run("a", 3, 0, 2, FIRST), run("b", 3, 2, 4, LAST)]
    found = harvested(run("c", 90, 0, 4, [*FIRST, *LAST]), *together)
    assert all((tensor == 3).all() for tensor in found.state.values())
    assert found.plan.epoch == 3, "not the newest plan, which is that of the other model"
    assert "NOT IN IT: the model that device c, apart from the others at the end," in report.render(found)
    assert report.to_plain(found)["others"] == [{"trainers": ("device c",), "step": 40, "epoch": 90}]


def test_of_one_that_is_not_finished_nothing_of_the_kind_is_said() -> None:
    together = [run("a", 3, 0, 2, FIRST, 2), run("b", 3, 2, 4, LAST, 2)]
    found = harvested(run("c", 90, 0, 4, [*FIRST, *LAST], 2), *together)
    assert found.is_half_way and found.others == () and "NOT IN IT" not in report.render(found)
    ahead = harvested(run("c", 90, 0, 4, [*FIRST, *LAST], 3), *together)
    assert all((tensor == 90).all() for tensor in ahead.state.values()), "who is further counts, whoever it is"


ODD = {
    "empty": (2, 4, []),
    "lacks one": (2, 4, LAST[:-1]),
    "has others', too": (0, 2, [*FIRST, *LAST]),
    "has others' alone": (0, 2, LAST),
    "empty, of all blocks": (0, 4, []),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_copy_without_the_tensors_of_its_blocks_is_blamed_alone_and_the_honest_ones_make_the_model(odd: str) -> None:
    first, stop, names = ODD[odd]
    bad = run("c", 3, first, stop, names)
    honest = [run("a", 3, 0, 2, FIRST), run("b", 3, 2, 4, LAST)]
    others = [each for each in honest if not first <= each[0].part < stop]
    with pytest.raises(MisfitError) as caught:
        harvested(bad, *others)
    assert caught.value.holdings == (bad[0],)
    misfits = Misfits()
    assert misfits.add(caught.value)
    found = harvested(bad, *honest, misfits=misfits)
    assert found.state.keys() == STATE.keys() and all((tensor == 3).all() for tensor in found.state.values())
