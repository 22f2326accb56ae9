"""A harvested model on disk: readable without p2ptrain, and nothing in it runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from p2ptrain.config import DataConfig, Job, ModelConfig
from p2ptrain.errors import UserError
from p2ptrain.learning.checkpoint import load_model, read_model, save_model
from p2ptrain.learning.models import build_model

JOB = Job(
    name="digits",
    model=ModelConfig("lenet", 0.5),
    data=DataConfig(classes=("zero", "één", "2"), input_shape=(1, 8, 8), mean=(0.3,), std=(0.37,)),
)


def lenet(seed: int = 3) -> torch.nn.Module:
    return build_model("lenet", input_shape=(1, 8, 8), num_classes=3, width=0.5, seed=seed).eval()


def test_there_and_back(tmp_path: Path) -> None:
    path, model = tmp_path / "new" / "model.safetensors", lenet()
    lineage = [{"part": 0, "trainer": "abc", "round": 3}]
    save_model(path, model.state_dict(), JOB, {"lineage": lineage, "note": "hi", "accuracy": 0.5})
    loaded, card = load_model(path)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded(x), model(x)) and not loaded.training
    assert (card.model, card.width, card.job_id) == ("lenet", 0.5, JOB.id)
    assert card.data == dataclasses.replace(JOB.data, val=0.0)  # a model is judged on all the samples that are given
    assert card.lineage == (lineage[0],) and card.extra == {"note": "hi", "accuracy": "0.5"}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    lenet(9).load_state_dict(load_file(path))  # the plain module takes the file as it is


def test_strided_and_shared_tensors_are_stored(tmp_path: Path) -> None:
    state = {n: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for n, t in lenet().state_dict().items()}
    state["fc2.bias"] = state["fc2.weight"][:, 0]
    save_model(tmp_path / "m.safetensors", state, JOB)
    loaded, _, _ = read_model(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded[n], state[n]) for n in state)


def test_attribution_rides_beside_the_model(tmp_path: Path) -> None:
    scores = {"attribution/conv1": torch.rand(3, 12)}
    save_model(tmp_path / "m.safetensors", {**lenet().state_dict(), **scores}, JOB)
    assert read_model(tmp_path / "m.safetensors")[1]["conv1"].shape == (3, 12)
    load_model(tmp_path / "m.safetensors")


def test_damaged_files_are_the_users_matter(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_model(good, lenet().state_dict(), JOB)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "none.safetensors")
    bad = tmp_path / "bad.safetensors"
    data = good.read_bytes()
    for content in (b"", data[: len(data) // 2], b"\xff" * 64, b"PK\x03\x04" + data):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="again"):
            load_model(bad)
    save_file({"w": torch.zeros(1)}, bad)
    with pytest.raises(UserError, match="harvest"):
        load_model(bad)
    with pytest.raises(UserError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "{}"),
        ("classes", "not json"),
        ("input_shape", "[1, 8]"),
        ("width", "wide"),
        ("width", "-1"),
        ("audio", '{"surprise": 1}'),
        ("model", "no-such-model"),
        ("model", "lenet5:evil"),
        ("input_shape", "[3, 8, 8]"),
        ("seed", str(10**30)),
        ("seed", "-1"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lenet().state_dict(), JOB, {key: value})
    with pytest.raises(UserError, match=r"m\.safetensors"):
        load_model(path)


def test_own_code_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_digits_net.py").write_text(
        "from torch import nn\n"
        "def make(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    job = dataclasses.replace(JOB, model=ModelConfig("my_digits_net:make"))
    path = tmp_path / "m.safetensors"
    save_model(path, {"1.weight": torch.ones(3, 64), "1.bias": torch.zeros(3)}, job)
    with pytest.raises(UserError, match="allow-model"):
        load_model(path)
    assert "my_digits_net" not in sys.modules
    model, _ = load_model(path, allow_user_code=True)
    assert model(torch.ones(1, 1, 8, 8))[0, 0].item() == 64.0
    sys.modules.pop("my_digits_net")


def test_metadata_is_strings_and_json(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lenet().state_dict(), JOB)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    assert json.loads(header["classes"]) == ["zero", "één", "2"] and json.loads(header["mean"]) == [0.3]


def test_a_disk_without_modes_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def no_folders(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    def no_modes(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(os, "chmod", no_modes)
    save_model(tmp_path / "m.safetensors", lenet().state_dict(), JOB)
    assert load_model(tmp_path / "m.safetensors")[1].job_id == JOB.id


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write"):
        save_model(tmp_path / "file" / "m.safetensors", lenet().state_dict(), JOB)
