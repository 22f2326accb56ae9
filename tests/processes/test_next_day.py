"""What people do the day after: all stopped, one started again by its own command, a harvest with nobody there, another
job for the same group."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from group import PeerGroup, PeerProcess, make_job

from p2ptrain import api
from p2ptrain.core.harvest import KeptHarvest
from p2ptrain.errors import NotCoveredError, UserError
from p2ptrain.runtime import report

pytestmark = pytest.mark.slow
NOBODY = {"wait_s": 0.5}


def stop(*group: PeerProcess) -> None:
    for peer in group:
        peer.send(signal.SIGTERM)
    for peer in group:
        assert peer.wait(100) == 0, peer.tail(40)


def test_the_job_and_the_model_are_still_there_in_the_morning(peers: PeerGroup) -> None:
    job = make_job(peers=2, rounds=3, epochs=1.0)
    first = peers.add(job=job.to_json(), shard="1/2", keep_model=True).start()
    second = peers.add(shard="2/2").start()
    peers.until_all("done", 80)
    peers.until_all("model-written", 80, [first])
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
    peers.until(lambda: second.said("job-kept", since, job=job.id), 60, "it goes on with its own")
    peers.until(lambda: second.said("done", since), 60, "and is done with it")

    other = dataclasses.replace(job, training=dataclasses.replace(job.training, rounds=2))
    third = peers.add(job=other.to_json(), shard="1/2", peers=[second.address]).start()
    peers.until(lambda: second.said("job-left", since, theirs=other.id), 60, "the group has another job by now")
    peers.until_all("done", 80, [third])
    peers.until(lambda: second.said("job", since, job=other.id), 5, "and it trained that")


def test_half_way_is_what_it_is_called_everywhere(peers: PeerGroup) -> None:
    pair = peers.start(2, make_job(peers=2, rounds=100_000, epochs=4.0))
    peers.until_round(1)
    found = peers.harvest()
    assert report.kind(found) == "half-way model" and "HALF-WAY" in report.render(found)
    path = peers.home / "half.safetensors"
    api.save_harvest(path, found)
    assert api.load_model(path)[1].completeness == "half-way"
    command = [sys.executable, "-m", "p2ptrain.cli.main", "evaluate", str(path), "--data", "digits"]
    root = str(Path(api.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert "a HALF-WAY model" in said.stderr
    said = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert '"completeness": "half-way"' in said.stdout
    stop(*pair)
    left = peers.harvest(state_dir=pair[1].state, **NOBODY)
    assert report.kind(left) == "half-way model" and not left.missing
    with pytest.raises(NotCoveredError, match=r"no plan|nobody"):
        empty = dataclasses.replace(left.job, name="another")
        peers.add("alone", job=empty.to_json(), peers=[]).start()
        alone = peers.peers[-1]
        peers.until(lambda: alone.said("job"), 60, "it has its job")
        stop(alone)
        peers.harvest(state_dir=alone.state, **NOBODY)
