"""What people do the day after: all stopped, one started again by its own command, a harvest with nobody there, another
job for the same group."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from group import SOON_S, START_S, PeerGroup, PeerProcess, make_job

from p2ptrain import api
from p2ptrain.cli.model import evaluate
from p2ptrain.config import Job
from p2ptrain.core.harvest import KeptHarvest
from p2ptrain.errors import UserError
from p2ptrain.ids import blob_id
from p2ptrain.runtime import report

pytestmark = pytest.mark.slow
NOBODY = {"wait_s": 0.5}


def stop(*group: PeerProcess) -> None:
    for peer in group:
        peer.send(signal.SIGTERM)
    for peer in group:
        assert peer.wait(SOON_S) == 0, peer.tail(40)


def test_the_job_and_the_model_are_still_there_in_the_morning(peers: PeerGroup) -> None:
    job = make_job(peers=2, rounds=3, epochs=1.0)
    first = peers.add(job=job.to_json(), shard="1/2", keep_model=True).start()
    second = peers.add(shard="2/2").start()
    peers.until_all("done")
    peers.until_all("model-written", START_S, [first])
    stop(first, second)
    others = peers.home / "elsewhere"
    first.state.rename(others)  # a state directory may be moved

    kept = peers.harvest(state_dir=str(others), **NOBODY)
    assert isinstance(kept, KeptHarvest) and report.kind(kept) == "complete model" and "own copy" in kept.source
    assert [part.round for part in kept.report] == [3, 3] and "validation" in kept.plain
    assembled = peers.harvest(state_dir=second.state, **NOBODY)
    assert not isinstance(assembled, KeptHarvest) and "copies that lie in" in assembled.source
    assert assembled.state.keys() == kept.state.keys()
    assert all(bool((assembled.state[name] == tensor).all()) for name, tensor in kept.state.items()), "one model"
    both = peers.ask(api.harvest_kept([second.state, others]))
    assert report.completeness(both) == report.COMPLETE

    path = peers.home / "global.safetensors"
    api.save_harvest(path, kept, force=False)
    api.save_harvest(path, assembled, force=False)
    half = dataclasses.replace(kept, plain={**kept.plain, "half_way": True})
    with pytest.raises(UserError, match="is the complete model, and what there is now is the half-way model"):
        api.save_harvest(path, half, force=False)
    model, card = api.load_model(path)
    assert card.completeness == "complete" and api.evaluate(model, card, "digits").accuracy > 0.8

    since = time.time()
    second.start()  # by its own command: nobody tells it a job
    peers.until(lambda: second.said("job-kept", since, job=job.id), START_S, "it goes on with its own")
    peers.until(lambda: second.said("done", since), START_S, "and is done with it")

    other = continued(job, path)
    more = with_noise(second.options["data"], peers.home / "noise.npz")
    third = peers.add(job=other.to_json(), init=str(path), data=more, peers=[second.address]).start()
    peers.until(lambda: second.said("job-left", since, theirs=other.id), START_S, "the group has another job by now")
    peers.until_all("done", START_S, [third])
    peers.until(lambda: second.said("job", since, job=other.id), SOON_S, "and it trained that")
    both = peers.harvest()
    assert both.job.data.classes == (*job.data.classes, "noise")
    api.save_harvest(peers.home / "eleven.safetensors", both)
    model, card = api.load_model(peers.home / "eleven.safetensors")
    found = api.evaluate(model, card, more)
    assert found.accuracy > 0.8 and found.per_class[-1] > 0.8, "it knows the old ones still, and the new one"


def continued(job: Job, path: Path) -> Job:
    """Two rounds more from the model that lies there, with a class that is new."""
    data = dataclasses.replace(job.data, classes=(*job.data.classes, "noise"))
    model = dataclasses.replace(job.model, init=blob_id(path.read_bytes()), init_bytes=path.stat().st_size)
    return dataclasses.replace(job, data=data, model=model, training=dataclasses.replace(job.training, rounds=2))


def with_noise(digits: str, path: Path) -> str:
    """The digits, and pictures of an eleventh class: theirs with all pixels in another order."""
    arrays = dict(np.load(digits.removeprefix("npz:")))
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        noise = np.random.default_rng(0).permuted(x[::10].reshape(len(x[::10]), -1), axis=1).reshape(x[::10].shape)
        arrays |= {f"x_{split}": np.concatenate([x, noise])}
        arrays |= {f"y_{split}": np.array([*map(str, y.tolist()), *["noise"] * len(noise)])}
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_half_way_is_what_it_is_called_everywhere(peers: PeerGroup) -> None:
    pair = peers.start(2, make_job(peers=2, rounds=100_000, epochs=4.0))
    peers.until_round(1)
    peers.until_all("replica-acked")
    found = peers.harvest()
    stop(*pair)
    assert report.kind(found) == "half-way model" and "HALF-WAY" in report.render(found)
    left = peers.harvest(state_dir=pair[1].state, **NOBODY)
    assert report.kind(left) == "half-way model" and not left.missing
    path = peers.home / "half.safetensors"
    api.save_harvest(path, found)
    assert api.load_model(path)[1].completeness == "half-way"
    words = [str(path), "--data", pair[0].options["data"]]
    assert "a HALF-WAY model" in CliRunner().invoke(evaluate.command, words).output
    plain = json.loads(CliRunner().invoke(evaluate.command, [*words, "--json"]).output)
    assert plain["completeness"] == "half-way" and plain["samples"] > 100
