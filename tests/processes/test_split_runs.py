"""Split training by real peers: what federated averaging in one process trains, a helper without samples, its death.

Who helps is forced (``strategy = "mid-cut"``): for a model this small all are fastest alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from group import START_S, PeerGroup, PeerProcess, make_job, stopped_trainers
from torch import Tensor

from p2ptrain import api
from p2ptrain.config import Job
from p2ptrain.core.plan import Plan
from p2ptrain.learning.blocks.chain import Chain
from p2ptrain.learning.data import load, open_source, select
from p2ptrain.learning.models import global_model
from p2ptrain.learning.pipeline.samples import SampleStream
from p2ptrain.learning.split.draws import Draws, micro_batches
from p2ptrain.learning.split.units import Units
from p2ptrain.learning.split.update import RoundAverage
from p2ptrain.learning.training import make_optimizer, schedule
from p2ptrain.modes.split.config import SplitConfig
from p2ptrain.modes.split.plan import SplitBody, samples_of

pytestmark = pytest.mark.slow


def as_split(job: Job, **values: Any) -> Job:
    table = SplitConfig(**{"strategy": "mid-cut", "micro_batches": 4, "coding": "none"} | values)
    return dataclasses.replace(job, mode="split", tables=(table,))


def body_of(plan: Plan | None) -> SplitBody:
    assert plan is not None and isinstance(plan.body, SplitBody)
    return plan.body


def start(peers: PeerGroup, owners: int, job: Job) -> list[PeerProcess]:
    """Owners with a share of the digits each, and a helper without any."""
    made = [peers.add(job=job.to_json(), shard=f"{number + 1}/{owners}") for number in range(owners)]
    made.append(peers.add(job=job.to_json(), data=""))
    return [peer.start() for peer in made]


def averaged(job: Job, plan: Plan, owners: list[PeerProcess]) -> dict[str, Tensor]:
    """The model after all rounds of federated averaging in this process, from the same samples."""
    torch.set_num_threads(1)
    body = body_of(plan)
    alone = [dataclasses.replace(unit, helper=None, cut=body.split.num_blocks) for unit in body.split.units]
    split = dataclasses.replace(body.split, units=tuple(alone))
    with torch.device("meta"):
        chain = Chain(global_model(job, allow_user_code=False), job.data.input_shape)
    units = {}
    for peer in owners:
        source = open_source(peer.options["data"])
        indices = select(source, job.data, "train", shard=peer.options["shard"], seed=job.seed)
        units[peer.id] = Units(
            peer.id,
            split,
            samples_of(plan),
            chain,
            training=job.training,
            data=load(source, job.data, "train", indices),
            peer_name=peer.name,
            build=lambda: global_model(job, allow_user_code=False),
            seed=job.seed,
            num_classes=len(job.data.classes),
        )
    pieces: list[Any] = []
    samples = 0
    for number in range(job.training.rounds):
        average = RoundAverage(chain, number)
        for peer_id, each in sorted(units.items()):
            each.begin(number, pieces)
            while each.ready():
                assert each.advance() == []
            average.add(peer_id, *each.update())
        pieces = average.pieces((), rounds=job.training.rounds, samples_before=samples, optimizer="sgd")
        samples = int(pieces[0][1]["samples"])
    ((tensors, _),) = pieces
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


@pytest.mark.parametrize("labels", ["send", "stay"])
def test_two_owners_and_a_helper_train_what_federated_averaging_does(peers: PeerGroup, labels: str) -> None:
    job = as_split(make_job(rounds=3, epochs=1, peers=3), labels=labels)
    *owners, helper = start(peers, 2, job)
    peers.until_all("done")
    found = peers.harvest()
    body = body_of(found.plan)
    assert body.split.helpers == (helper.id,) and {unit.owner for unit in body.split.units} == {p.id for p in owners}
    assert {report.round for report in found.report} == {3} and bool(body.split.kept_from) == (labels == "stay")
    alone = averaged(job, found.plan, owners)
    assert alone.keys() == found.state.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(
            found.state[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def trained_centrally(job: Job, plan: Plan, owners: list[PeerProcess]) -> dict[str, Tensor]:
    """The model after all rounds of plain SGD in this process, on batches of all owners' samples together."""
    body, counts = body_of(plan), samples_of(plan)
    draws = Draws(counts, job.training.batch_size, seed=job.seed)
    streams = {}
    for peer in owners:
        source = open_source(peer.options["data"])
        data = load(
            source, job.data, "train", select(source, job.data, "train", shard=peer.options["shard"], seed=job.seed)
        )
        streams[peer.id] = SampleStream(data, seed=job.seed, peer_name=peer.name, augment=False)
    model = global_model(job, allow_user_code=False).train()
    optimizer = make_optimizer(dict(model.named_parameters()), job.training)
    parts = {unit.owner: unit.micro_batches for unit in body.split.units}
    for number in range(job.training.rounds):
        for owner, stream in streams.items():
            stream.drawn = number * counts[owner]
        for at, rows in enumerate(draws.of_round(number)):
            for settings in optimizer.param_groups:
                step, total = number * draws.steps_per_round + at, job.training.rounds * draws.steps_per_round
                settings["lr"] = job.training.learning_rate * schedule(job.training, step, total)
            drawn = [streams[o].draw(num) for o, given in rows.items() for num in micro_batches(given, parts[o])]
            x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    return model.state_dict()


def test_with_shared_tails_they_train_what_one_process_does(peers: PeerGroup) -> None:
    job = as_split(make_job(rounds=2, epochs=1, peers=3), tails="shared")
    *owners, helper = start(peers, 2, job)
    peers.until_all("done")
    found = peers.harvest()
    assert body_of(found.plan).split.helpers == (helper.id,) and found.plan.epoch == 1
    for name, tensor in trained_centrally(job, found.plan, owners).items():
        torch.testing.assert_close(
            found.state[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_helper_is_killed_and_its_owners_go_on(peers: PeerGroup) -> None:
    job = as_split(make_job(rounds=12, epochs=2, peers=3))
    *owners, helper = start(peers, 2, job)
    peers.until_round(3)
    with stopped_trainers([*owners, helper]):
        assert not any(peer.said("done") for peer in peers.peers), "killed in the middle of training"
        at = helper.kill()
    peers.until(lambda: all(peer.said("training", at) for peer in owners), START_S, "the others go on")
    for peer in owners:
        assert int(peer.lines("training", at)[0].fields["round"] or 0) >= 1, "from a saved state, not from the start"
    peers.until_all("done", START_S, owners)
    found = peers.harvest()
    assert found.plan.epoch > 1 and {report.round for report in found.report} == {12}
    path = peers.home / "model.safetensors"
    api.save_harvest(path, found)
    model, card = api.load_model(path)
    assert api.evaluate(model, card, "digits").accuracy > 0.85
