"""Pipelines of real peers: what one process trains, a lost stage, a trainer that dies, a helper without samples.

The stages are forced (``strategy = "equal"``): for a model this small the fastest pipeline is one peer alone.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from group import SOON_S, START_S, PeerGroup, PeerProcess, make_job, stopped_trainers

from p2ptrain import api
from p2ptrain.config import Job, ModelConfig, TrainingConfig
from p2ptrain.core.plan import Plan
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import load, open_source, propose_contract, select
from p2ptrain.learning.evaluation import evaluate
from p2ptrain.learning.models import global_model
from p2ptrain.learning.pipeline.training import StageTraining
from p2ptrain.modes.pipeline.config import PipelineConfig
from p2ptrain.modes.pipeline.plan import PipelineBody
from p2ptrain.planning.pipeline.stages import PipelinePlan, Stage
from p2ptrain.runtime import report

pytestmark = pytest.mark.slow


def as_pipeline(job: Job, *, strategy: str = "equal", micro_batches: int = 4, **values: Any) -> Job:
    pipeline = PipelineConfig(micro_batches, strategy=strategy, **values)  # type: ignore[arg-type]
    return dataclasses.replace(job, mode="pipeline", tables=(pipeline,))


def text_job(home: Path) -> tuple[Job, str]:
    """A decoder on bytes that have something to learn."""
    path = home / "text.txt"
    path.write_text("".join(f"{i % 7} times {i % 5} is {i % 7 * (i % 5)}. " for i in range(1500)))
    data = f"text:{path}"
    contract = dataclasses.replace(propose_contract(open_source(data)), input_shape=(1, 1, 32), val=0.0)
    training = TrainingConfig(rounds=2, epochs_per_round=1.5, batch_size=32, optimizer="adamw", learning_rate=1e-3)
    job = dataclasses.replace(make_job(peers=3), data=contract, training=training)
    return dataclasses.replace(job, model=ModelConfig("gpt_mini", width=0.25)), data


def first_owner(peers: PeerGroup, plan: Plan) -> PeerProcess:
    """The peer of the first stage: its samples are the ones that are trained."""
    assert isinstance(plan.body, PipelineBody)
    (owner,) = plan.body.pipeline.stages[0].peers
    return next(peer for peer in peers.peers if peer.id == owner)


def trained_alone(job: Job, plan: Plan, owner: PeerProcess) -> dict[str, torch.Tensor]:
    """The model after all batches of a pipeline of one, in this process, from the same samples."""
    assert isinstance(plan.body, PipelineBody)
    pipeline = plan.body.pipeline
    stage = Stage(0, pipeline.num_blocks, ("alone",), (pipeline.micro_batch,), 1)
    alone = dataclasses.replace(pipeline, stages=(stage,), left_out=())
    assert isinstance(alone, PipelinePlan)
    source = open_source(owner.options["data"])
    indices = select(source, job.data, "train", shard=owner.options["shard"] or None, seed=job.seed)
    torch.set_num_threads(1)
    training = StageTraining(
        job.training,
        Chain(global_model(job, allow_user_code=False), job.data.input_shape),
        alone,
        "alone",
        build=lambda: global_model(job, allow_user_code=False),
        data=load(source, job.data, "train", indices),
        peer_name=owner.name,
        seed=job.seed,
        steps_per_round=plan.body.steps_per_round,
        num_classes=len(job.data.classes),
    )
    while not training.finished:
        assert training.advance() == []
    tensors, _ = training.snapshot()
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


@pytest.mark.parametrize("kind", ["lenet", "gpt_mini"])
def test_three_processes_train_what_one_does(peers: PeerGroup, tmp_path: Path, kind: str) -> None:
    if kind == "lenet":
        job, options = as_pipeline(make_job(rounds=3, epochs=0.7, peers=3)), {}
    else:
        job, data = text_job(tmp_path)
        job, options = as_pipeline(job), {"data": data}
    peers.start(3, job, **options)
    peers.until_all("done")
    found = peers.harvest()
    assert isinstance(found.plan.body, PipelineBody) and len(found.plan.body.pipeline.stages) == 3
    steps = found.plan.body.steps_per_round * job.training.rounds
    assert {report.step for report in found.report} == {steps} and steps >= 20
    alone = trained_alone(job, found.plan, first_owner(peers, found.plan))
    assert alone.keys() == found.state.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(
            found.state[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_two_owners_share_each_micro_batch(peers: PeerGroup) -> None:
    """Each tells how good the model is on its own validation samples, and a harvest what all of them say together."""
    job = as_pipeline(make_job(rounds=6, epochs=2, peers=2), strategy="data-parallel")
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, val=0.1))
    both = peers.start(2, job, keep_model=True)
    peers.until_all("model-looked-at")
    told = {peer.name: peer.lines("model-looked-at")[0].fields for peer in both}
    found = peers.harvest(wait_s=90)
    while len(found.looks) < 2:  # the last one is still passed on
        found = peers.harvest(wait_s=90)
    assert {look.name: (look.samples, round(look.accuracy, 4)) for look in found.looks} == {
        name: (fields["samples"], fields["accuracy"]) for name, fields in told.items()
    }
    source = open_source(both[0].options["data"])
    held = load(source, job.data, "val", select(source, job.data, "val"))
    whole = global_model(job, allow_user_code=False)
    whole.load_state_dict(found.state)
    by_hand = evaluate(whole, [held.tensors()], len(job.data.classes))
    assert report.to_plain(found)["validation"]["samples"] == by_hand.samples > 100
    assert report.to_plain(found)["validation"]["accuracy"] == pytest.approx(by_hand.accuracy)
    assert isinstance(found.plan.body, PipelineBody)
    (stage,) = found.plan.body.pipeline.stages
    assert set(stage.peers) == {peer.id for peer in both}
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    model, card = api.load_model(path)
    assert api.evaluate(model, card, "digits").accuracy > 0.85


@pytest.mark.parametrize("schedule", ["sync", "async"])
def test_a_lost_stage_is_taken_over_from_what_was_saved(peers: PeerGroup, schedule: str) -> None:
    job = as_pipeline(make_job(rounds=14, epochs=2, peers=3), schedule=schedule)
    three = peers.start(3, job)
    peers.until_round(3)
    peers.until_all("replica-acked")
    with stopped_trainers(three):
        plan = peers.status().plan
        assert plan is not None and isinstance(plan.body, PipelineBody)
        lost = next(peer for peer in three if peer.id == plan.body.pipeline.stages[1].peers[0])
        others = [peer for peer in three if peer is not lost]
        at = lost.kill()
        assert not any(peer.said("done") for peer in three), "killed in the middle of training"
    peers.until_all("failed", SOON_S, others, peer=lost.id)
    peers.until(lambda: all(peer.said("training", at) for peer in others), START_S, "the others go on")
    for peer in others:
        assert int(peer.lines("training", at)[0].fields["round"] or 0) >= 1, "from a saved step, not from the start"
    peers.until_all("done", START_S, others)
    found = peers.harvest()
    assert found.plan.epoch > plan.epoch and {report.round for report in found.report} == {14}
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    model, card = api.load_model(path)
    assert api.evaluate(model, card, "digits").accuracy > 0.85


def test_a_trainer_that_dies_and_a_helper_without_samples(peers: PeerGroup) -> None:
    job = as_pipeline(make_job(rounds=12, epochs=2, peers=2), snapshot_steps=5)
    owner = peers.add(job=job.to_json(), shard="1/2").start()
    helper = peers.add(data="").start()
    peers.until_round(2)
    with stopped_trainers([owner]):
        plan = peers.status().plan
        assert plan is not None and isinstance(plan.body, PipelineBody)
        assert [stage.peers for stage in plan.body.pipeline.stages] == [(owner.id,), (helper.id,)]
        assert not owner.said("done"), "killed in the middle of training"
        at = time.time()
        helper.trainer().send_signal(signal.SIGKILL)
        peers.until(lambda: helper.said("trainer-failed", at), SOON_S, "the node notices")
    peers.until(lambda: owner.said("training", at), START_S, "the other goes on; it may be done before the helper is")
    assert int(owner.lines("training", at)[0].fields["round"] or 0) >= 1
    peers.until_all("done")
    found = peers.harvest()
    assert {report.round for report in found.report} == {12}
    assert all(bool(tensor.isfinite().all()) for tensor in found.state.values())
