"""What the commands that use a model say of one picture, of a folder, and of a text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from p2ptrain.learning.checkpoint import save_model
from p2ptrain.learning.models import global_model
from p2ptrain.modes.jobs import load_job

RNG = np.random.default_rng(8)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(spec: str, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """A model that was made for these data, and has learnt nothing."""
    status, _, err = run(["job", "new", "--data", spec, "--model", name, *more, "-o", "j.toml"], capsys)
    assert status == 0, err
    job = load_job("j.toml")
    save_model(Path("m.safetensors"), global_model(job, allow_user_code=False).state_dict(), job)
    return "m.safetensors"


def test_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "Pepper,_bell"):
        (here / "photos" / name).mkdir(parents=True)
        for i in range(4):
            pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(here / "photos" / name / f"{i}.png")
    model = model_of("images:photos", "lenet", capsys)
    status, out, err = run(["predict", model, "photos/cat/0.png"], capsys)
    assert status == 0 and not err and out.startswith("photos/cat/0.png: ") and out.count("%") == 2
    (here / "photos" / "cat" / "9.png").write_bytes(b"no picture")
    status, out, err = run(["predict", model, "photos/cat", "--top", "1", "--json"], capsys)
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 2 and "9.png" in err and len(lines) == 4, "the others are answered"
    assert all(len(line["top"]) == 1 and 0.5 <= line["top"][0]["probability"] <= 1 for line in lines)
    assert run(["generate", model], capsys)[2].startswith("p2ptrain: this model does not read text")


def test_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "book.txt").write_text("a b c d e f g\n" * 1000)
    model = model_of("text:book.txt", "gpt_mini", capsys, "--width", "0.25")
    how = ["generate", model, "--prompt", "a b", "--bytes", "5", "--seed", "3"]
    status, out, _ = run([*how, "--json"], capsys)
    told = json.loads(out)
    assert status == 0 and told["prompt"] == "a b" and told["seed"] == 3 and told["text"]
    assert run([*how, "--json"], capsys)[1] == out, "the same seed, the same text"
    status, out, _ = run(how, capsys)
    assert status == 0 and out.startswith("a b") and "\x1b" not in out
    assert run(["predict", model, "book.txt"], capsys)[2].startswith("p2ptrain: this model reads text")
