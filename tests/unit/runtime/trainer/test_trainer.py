"""The trainer without its process: what is wrong with a model or a checkpoint is said before any plan."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from p2ptrain.config import DataConfig, Job, ModelConfig, TrainingConfig
from p2ptrain.core import commands as c
from p2ptrain.core.effects import RestartTrainer, TrainerLost
from p2ptrain.core.restarts import RESTARTS, Restarts
from p2ptrain.core.worker import Setup
from p2ptrain.errors import JobError, P2PTrainError, UserError
from p2ptrain.learning.checkpoint import save_model
from p2ptrain.learning.models import build_model
from p2ptrain.modes.registry import MODES, commands
from p2ptrain.modes.tasks.config import TasksConfig
from p2ptrain.runtime.node.peer_node import PeerNode
from p2ptrain.runtime.trainer import process, trainer
from p2ptrain.runtime.trainer.process import NodeLink
from p2ptrain.runtime.trainer.trainer import Trainer

STRANGERS = str(Path(__file__).parents[2] / "learning" / "own")
DATA = DataConfig(tuple("abcdefghij"), (1, 8, 8), mean=(0.5,), std=(0.25,), val=0.0)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(STRANGERS)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def configure(
    folder: Path, model: str, *, init: str = "", mode: str = "auto", data: DataConfig = DATA, **settings: object
) -> list[object]:
    """What the trainer says when it is told a job of this model, of forty samples."""
    rng = np.random.default_rng(0)
    labels = np.array(list("abcdefghij") * 4)
    np.savez(folder / "own.npz", x_train=rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), y_train=labels)
    job = Job(mode=mode, model=ModelConfig(model), data=data, training=TrainingConfig(batch_size=16))
    job = job.with_table(dataclasses.replace(TasksConfig(), **settings))  # type: ignore[arg-type]
    said: list[object] = []
    command = c.Configure(job=job.to_json(), data=f"npz:{folder / 'own.npz'}", name="one", allow_user_code=True)
    Trainer(said.append).handle(dataclasses.replace(command, init=init))
    return said


def test_a_model_that_trains_makes_the_trainer_ready(tmp_path: Path) -> None:
    (ready,) = configure(tmp_path, "strangers:Viewed")
    assert isinstance(ready, c.Ready) and ready.counts == (4,) * 10 and ready.max_groups == 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("strangers:Failing", "strangers.py, line"),
        ("strangers:many_outputs", "must return logits"),
        ("strangers:NotANumber", "not finite"),
        ("strangers:Leaving", "sys.exit"),
        ("strangers:leaving_when_built", "sys.exit"),
        ("strangers:nothing", "has no function 'nothing'"),
    ],
)
def test_a_model_that_does_not_is_the_persons_matter(tmp_path: Path, model: str, said: str) -> None:
    """A ``UserError``: the trainer is not started again, and the peer ends with it."""
    with pytest.raises(JobError, match=said):
        configure(tmp_path, model)


def test_a_checkpoint_is_held_against_the_model_before_any_plan(tmp_path: Path) -> None:
    state = build_model("lenet", input_shape=(1, 8, 8), num_classes=1000, seed=1).state_dict()
    save_file(state, tmp_path / "other.safetensors")
    assert isinstance(configure(tmp_path, "lenet", init=str(tmp_path / "other.safetensors"))[-1], c.Ready)
    save_file({"x.weight": torch.zeros(2, 2)}, tmp_path / "nothing.safetensors")
    with pytest.raises(JobError, match="nothing in the checkpoint fits"):
        configure(tmp_path, "lenet", init=str(tmp_path / "nothing.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="job new --init"):
        configure(tmp_path, "lenet", init=str(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("mode", sorted(MODES))
def test_in_every_mode_the_others_keep_their_rows_when_a_class_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    given: list[Setup] = []
    monkeypatch.setattr(trainer, "Setup", lambda *values: given.append(Setup(*values)) or given[0])
    theirs = build_model("lenet", input_shape=(1, 8, 8), num_classes=10, seed=3).state_dict()
    path = tmp_path / "ten.safetensors"
    save_model(path, theirs, Job(model=ModelConfig("lenet"), data=DATA))
    grown = dataclasses.replace(DATA, classes=("Ferret", *DATA.classes))
    said = configure(tmp_path, "lenet", init=str(path), mode=mode, data=grown)
    ready = next(each for each in said if isinstance(each, c.Ready))
    assert ready.remarks == (
        "of the model that the job starts from, 10 of 11 classes keep what it has learnt of them; "
        "new, so with fresh weights: Ferret",
    )
    start = given[0].init
    assert start is not None and all(torch.equal(start[name][-len(old) :], old) for name, old in theirs.items())
    assert start["fc2.weight"].shape == (11, 120) and bool(start["fc2.weight"][0].abs().sum() > 0)


def test_a_head_that_is_to_be_fitted_again_is_looked_for_before_any_plan(tmp_path: Path) -> None:
    assert configure(tmp_path, "strangers:HeadFirst", fit_head="always")
    with pytest.raises(JobError, match="can't be fitted again"):
        configure(tmp_path, "strangers:LogSoftmax", fit_head="always")


# --- errors of connections: whose ---


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The node's end; ``main`` gets the other."""
    monkeypatch.setattr(trainer, "die_with_node", lambda: None)
    monkeypatch.setattr(trainer, "keep_for_training", lambda: None)
    ours, theirs = socket.socketpair()
    with ours, theirs, np.errstate():
        monkeypatch.setattr(trainer, "NodeLink", lambda fd: NodeLink(theirs.detach()))
        yield ours


@pytest.mark.parametrize("error", [ConnectionResetError("of a download"), BrokenPipeError("of a pipe"), EOFError("!")])
def test_the_jobs_own_errors_of_connections_are_told(
    monkeypatch: pytest.MonkeyPatch, link: socket.socket, error: Exception
) -> None:
    """A data set that is read over a network, say: the node is still there, and hears of it."""

    def fail(self: Trainer, command: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "handle", fail)
    process._send(link, c.Stop())
    with pytest.raises(type(error)):
        trainer.main(0)
    assert isinstance(process._receive(link, commands(), process._kept), c.Beat)
    told = process._receive(link, commands(), process._kept)
    assert told == c.TrainerFailed(f"{type(error).__name__}: {error}", user_error=False)


@pytest.mark.parametrize("works", [False, True])
def test_without_its_node_it_ends_without_an_error(
    monkeypatch: pytest.MonkeyPatch, link: socket.socket, works: bool
) -> None:
    """Whether it listens when the node goes, or speaks later."""

    def work(self: Trainer, command: object) -> None:
        link.close()
        self._say(c.Beat("works"))

    monkeypatch.setattr(Trainer, "handle", work)
    if works:
        process._send(link, c.Stop())
    else:
        link.close()
    trainer.main(0)


# --- what the node makes of it ----------------------------------------------------------------------------------------


class _Group:
    def say(self, now: float, **fields: object) -> list[object]:
        return []


def test_a_persons_error_is_not_tried_again_and_others_a_few_times() -> None:
    def after(restarts: Restarts, user_error: bool) -> type:
        return type(restarts.after(c.TrainerFailed("why", user_error=user_error), 0.0)[-1])

    assert after(Restarts(_Group()), True) is TrainerLost  # type: ignore[arg-type]
    restarts = Restarts(_Group())  # type: ignore[arg-type]
    assert [after(restarts, False) for _ in range(RESTARTS + 1)] == [RestartTrainer] * RESTARTS + [TrainerLost]


def test_a_peer_without_a_trainer_ends_with_an_error_whenever_it_ends() -> None:
    node = PeerNode.__new__(PeerNode)
    node.failure, node._lost = None, None
    node._trainer_lost(TrainerLost("a bug", user_error=False))
    assert node.failure is None  # it keeps what it has for the others
    assert isinstance(node._lost, P2PTrainError) and "a bug" in str(node._lost)
