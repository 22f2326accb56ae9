"""What the commands say of people's files: names with commas, files that can't be read, samples that are not there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
import numpy as np
import pytest
from command_line import run
from PIL import Image

from p2ptrain.cli.main import main
from p2ptrain.cli.model.evaluate import command as evaluate_command
from p2ptrain.cli.shared.options import Names
from p2ptrain.errors import DataError
from p2ptrain.learning.checkpoint import save_model
from p2ptrain.learning.models import global_model
from p2ptrain.modes.jobs import load_job
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.runtime import preflight

RNG = np.random.default_rng(6)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder: Path, classes: tuple[str, ...] = ("Pepper,_bell", "cat"), num: int = 6) -> str:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(num):
            Image.fromarray(RNG.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / name / f"{i}.png")
    return f"images:{folder}"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cat,dog", ("cat", "dog")),
        (" cat , dog ", ("cat", "dog")),
        ('"Pepper,_bell"', ("Pepper,_bell",)),
        ('cat,"Pepper,_bell", dog', ("cat", "Pepper,_bell", "dog")),
        ('"5"" nail",Café', ('5" nail', "Café")),
        ("it's", ("it's",)),
    ],
)
def test_names_may_have_commas_and_quotes(given: str, names: tuple[str, ...]) -> None:
    assert Names().convert(given, None, None) == names


@pytest.mark.parametrize("given", ["", ",", "a,,b", "a,a", '"a', '"a"b,c'])
def test_what_is_no_list_of_names_is_refused_with_an_example(given: str) -> None:
    with pytest.raises(click.BadParameter, match=r'"Pepper,_bell",cat'):
        Names().convert(given, None, None)


def test_classes_may_be_given_again() -> None:
    context = evaluate_command.make_context("evaluate", ["x", "--data", "y", "--classes", '"a,b",c', "--classes", "d"])
    assert context.params["classes"] == ("a,b", "c", "d")
    with pytest.raises(click.BadParameter, match="named twice"):
        evaluate_command.make_context("evaluate", ["x", "--data", "y", "--classes", "d", "--classes", "d"])


def test_classes_with_commas_and_broken_files_from_job_to_check(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(here / "photos")
    (here / "photos" / "cat" / "0.png").write_bytes(b"")
    cut = here / "photos" / "cat" / "1.png"
    cut.write_bytes(cut.read_bytes()[:150])
    status, _, err = run(["job", "new", "--data", data, "-o", "j.toml"], capsys)
    assert status == 0 and "note: 2 of 12 samples can't be read and are left out: " in err
    job = load_job(here / "j.toml")
    assert job.data.classes == ("Pepper,_bell", "cat")
    request = preflight.Request(data, job.to_json(), classes=("Pepper,_bell",))
    assert preflight.check_data(request)["samples"] == {"Pepper,_bell": 5}

    check = ["job", "check", "j.toml", "--data", data]
    assert "note      1 file can't be read, by headers alone (--full reads all" in run(check, capsys)[1]
    assert "note      2 files can't be read; left out" in run([*check, "--full"], capsys)[1]
    status, _, err = run([*check, "--full", "--strict"], capsys)
    assert status == 2 and "cat/" in err and "not a readable image" in err
    notes = json.loads(run([*check, "--full", "--json"], capsys)[1])["notes"]
    assert any("2 files can't be read" in note for note in notes)
    assert run(["job", "check", "j.toml", "--full"], capsys)[2].endswith("name them with --data\n")


def test_what_is_wrong_with_a_set_of_samples_is_said_before_a_peer_starts(here: Path) -> None:
    x, y = RNG.random((40, 12, 12)).astype(np.float32), np.array(["a", "b"] * 20)
    np.savez(here / "x.npz", x_train=x, y_train=y, extra=y)
    main_args = ["job", "new", "--data", f"npz:{here / 'x.npz'}", "-o", "j.toml"]
    with pytest.raises(SystemExit):
        main(main_args)
    text = load_job(here / "j.toml").to_json()
    assert preflight.check_data(preflight.Request(f"npz:{here / 'x.npz'}", text))["notes"] == ["not read: arrays extra"]
    np.savez(here / "y.npz", x_train=255 * x, y_train=y)
    with pytest.raises(DataError, match="another scale"):
        preflight.check_data(preflight.Request(f"npz:{here / 'y.npz'}", text))
    np.savez(here / "z.npz", x_train=x[:1], y_train=y[:1])
    with pytest.raises(DataError, match="1 sample to train on"):
        preflight.check_data(preflight.Request(f"npz:{here / 'z.npz'}", text))


def test_a_batch_of_one_is_refused_where_nothing_would_be_learnt(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(here / "photos")
    new = ["job", "new", "--data", data, "--batch-size", "1", "-o", "j.toml", "--force", "--model"]
    assert run([*new, "dscnn"], capsys)[0] == 0
    status, _, err = run(["job", "check", "j.toml"], capsys)
    assert status == 2 and "training.batch_size: 1, and the model has batch normalisation" in err
    run([*new, "lenet"], capsys)
    assert run(["job", "check", "j.toml"], capsys)[1].endswith("fine\n")


def test_nothing_to_evaluate_on_is_an_error_and_broken_files_are_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(here / "photos" / "train", ("a", "b"))
    run(["job", "new", "--data", f"images:{here / 'photos'}", "-o", "j.toml"], capsys)
    pictures(here / "photos" / "test", ("a",), 3)
    job = load_job(here / "j.toml")
    model = global_model(job, allow_user_code=False)
    save_model(here / "m.safetensors", model.state_dict(), job)
    evaluate = ["evaluate", "m.safetensors", "--data"]
    status, out, err = run([*evaluate, f"images:{here / 'photos'}", "--classes", "b"], capsys)
    assert status == 2 and not out and "no samples of b to evaluate on in test; samples there: a 3" in err
    assert run([*evaluate, f"images:{here / 'photos'}"], capsys)[0] == 0
    (here / "photos" / "train" / "a" / "0.png").write_bytes(b"")
    status, out, err = run([*evaluate, data], capsys)
    assert status == 0 and "     11" in out and "note: 1 of" in err and "a/0.png" in err
    status, out, err = run([*evaluate, data, "--strict"], capsys)
    assert status == 2 and not out and "a/0.png" in err


def test_a_job_keeps_what_white_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (here / "x" / name).mkdir(parents=True)
        for i in range(4):
            out = io.BytesIO()
            Image.fromarray(RNG.integers(0, 4096, (12, 12), np.uint16)).save(out, "PNG")
            (here / "x" / name / f"{i}.png").write_bytes(out.getvalue())
    run(["job", "new", "--data", f"images:{here / 'x'}", "-o", "j.toml"], capsys)
    job = load_job(here / "j.toml")
    assert job.data.white == 4095
    from p2ptrain.learning.checkpoint import read_model

    save_model(here / "m.safetensors", global_model(job, allow_user_code=False).state_dict(), job)
    assert read_model(here / "m.safetensors")[2].data.white == 4095


@pytest.mark.parametrize(("scheme", "num_classes"), [("cifar", 100), ("cifar-coarse", 20)])
def test_cifar_100_makes_a_job_with_fine_or_coarse_classes(
    scheme: str, num_classes: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "cifar-100-binary"
    folder.mkdir()
    for kind, number in (("fine", 100), ("coarse", 20)):
        (folder / f"{kind}_label_names.txt").write_text("".join(f"{kind}_{i}\n" for i in range(number)))
    for name, number in (("train.bin", 400), ("test.bin", 100)):
        records = RNG.integers(0, 256, (number, 2 + 3072), np.uint8)
        records[:, 1] = np.arange(number) % 100
        records[:, 0] = records[:, 1] // 5
        records.tofile(folder / name)
    data = f"{scheme}:{here}"
    code, _, err = run(
        ["job", "new", "--data", data, "--model", "lenet", "--budget", "1/11.8", "-o", "job.toml"], capsys
    )
    assert code == 0, err
    job = load_job(here / "job.toml")
    assert len(job.data.classes) == num_classes and job.data.input_shape == (3, 32, 32)
    assert tasks_of(job).budget == pytest.approx(1 / 11.8) and tasks_of(job).passes == 0
    code, out, err = run(["job", "check", "job.toml", "--data", data, "--json"], capsys)
    assert code == 0, err
    assert json.loads(out)["classes"] == list(job.data.classes)


@pytest.mark.parametrize("given", ["1/0", "12", "-0.1", "a/b", "nan"])
def test_a_budget_is_a_part_of_something(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["job", "new", "--data", "digits", "--budget", given, "-o", "job.toml"], capsys)
    assert code == 2 and "is no part; expected such as 0.085 or 1/11.8" in err
