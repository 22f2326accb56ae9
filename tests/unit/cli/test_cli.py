"""The command line: its surface is frozen here, its errors are one line, and what only looks starts without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from command_line import run, typed

from p2ptrain.api import default_state_dir
from p2ptrain.cli.main import COMMANDS, cli
from p2ptrain.cli.shared.options import Duration, Names
from p2ptrain.errors import UserError
from p2ptrain.modes.jobs import load_job, mode_tables
from p2ptrain.modes.tasks.config import tasks_of
from p2ptrain.net.group.kept import load_group
from p2ptrain.net.keys import new_group

GROUP = ["--code", "--open", "--state"]
PAGE = ["--web", "--web-port", "--web-listen"]
NETWORK = ["--peer", "--interface", "--no-discovery"]
SURFACE = {
    "group new": ["--state", "--approve", "--json"],
    "group join": ["--state", "--json"],
    "group show": ["--state", "--json"],
    "group approve": ["NAME...", "--state", "--json"],
    "group rotate": ["--state", *NETWORK, "--wait", "--yes", "--json", "--approve"],
    "group remove": ["NAME...", "--state", *NETWORK, "--wait", "--yes", "--json"],
    "job new": [
        *("--data", "--model", "--name", "--mode", "--rounds", "--epochs", "--batch-size", "--optimizer"),
        *("--learning-rate", "--seed", "--width", "--groups", "--trunk", "--min-peers", "--compression", "--augment"),
        *("--no-augment", "--input-shape", "--init", "-o", "--output", "--force", "--micro-batches", "--schedule"),
        *("--val", "--passes", "--budget", "--classes", "--model-template", "--robust"),
        *("--warmup", "--clip", "--precision", "--patience", "--look-every"),
        *("--loss", "--own-optimizer", "--own-schedule", "--transform", "--freeze"),
        *("--strategy", "--proximal"),
    ],
    "job continue": ["FILE", "--rounds", "--classes", "--model", "--state", "-o", "--output", "--force"],
    "job check": ["FILE", "--data", "--full", "--strict", "--allow-model", "--allow-code", "--json"],
    "peer": [
        *(*GROUP, "--job", "--data", "--classes", "--shard", "--dirichlet", "--profile", "--name", *NETWORK, "--port"),
        *(
            "--threads",
            "--device",
            "--strict",
            "--allow-model",
            "--allow-code",
            "--linger",
            "--out",
            "--no-model",
            "--fresh",
        ),
        "--no-remote-stop",
        *("--tensorboard", "--logger", "--log-file"),
        *("--quiet", "--json", *PAGE),
    ],
    "status": [*GROUP, *NETWORK, "--wait", "--json"],
    "watch": [*GROUP, *NETWORK, "--interval", "--plain", *PAGE],
    "stop": [*GROUP, *NETWORK, "--wait", "--until", "--yes", "--json"],
    "harvest": [
        *(*GROUP, *NETWORK, "--wait", "-o", "--output", "--force", "--from", "--partial", "--data", "--allow-model"),
        *("--without", "--card", "--best"),
        "--json",
    ],
    "evaluate": [
        *(
            "FILE",
            "--data",
            "--shard",
            "--classes",
            "--batch-size",
            "--confusion",
            "--strict",
            "--allow-model",
            "--json",
        ),
    ],
    "predict": ["MODEL", "FILE_OR_FOLDER...", "--top", "--allow-model", "--json"],
    "generate": ["MODEL", "--prompt", "--bytes", "--temperature", "--top-k", "--seed", "--allow-model", "--json"],
    "export": ["FILE", "--format", "-o", "--output", "--allow-model"],
    "attribute": ["FILE", "--data", "--samples", "-o", "--output", "--allow-model"],
    "probe": [
        *("-o", "--output", "--name", "--kind", "--force", "--model"),
        *("--width", "--input-shape", "--classes", "--batch-size"),
    ],
    "plan": [
        *("PROFILE...", "--model", "--mode", "--width", "--input-shape", "--classes", "--batch-size"),
        *("--micro-batches", "--schedule", "--optimizer", "--activations", "--gradients"),
        *("--rate", "--link", "--latency", "--png", "--helper", "--samples", "--medium", "--tails"),
        *("--labels", "--json"),
    ],
    "service install": ["[--] PEER_OPTIONS...", "--kind", "--write", "--force"],
    "report": ["DIR...", "-o", "--output", "--csv", "--job", "--force"],
    "log": ["--state", "-n", "--lines", "--since", "--kind", "--all", "-f", "--follow", "--json"],
    "doctor": [*GROUP, *NETWORK, "--port", "--wait", "--json"],
}
NAMES = [name for name in COMMANDS if name != "demo"]
LOOPBACK = ["--interface", "127.0.0.1", "--no-discovery"]


def leaves(names: list[str]) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    ctx = click.Context(cli)
    for name in names:
        command = cli.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items()}
        else:
            found[name] = command
    return found


def names_of(parameter: click.Parameter) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(parameter.metavar)]
    return [*parameter.opts, *parameter.secondary_opts]


def test_the_surface() -> None:
    found = {name: sorted(n for p in each.params for n in names_of(p)) for name, each in leaves(NAMES).items()}
    assert found == {name: sorted(options) for name, options in SURFACE.items()}


def test_every_option_says_its_default_and_every_command_has_an_example() -> None:
    for name, command in leaves(NAMES).items():
        assert f"p2ptrain {name}" in (command.epilog or ""), name
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag and not option.required:
                assert "default: " in (option.help or ""), (name, option.opts)
            assert isinstance(option, click.Argument) or option.help, (name, option.opts)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("P2PTRAIN_CODE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


CODE = str(new_group())
PEER = ["peer", "--code", CODE, *LOOPBACK]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command"),
        (["harvest", "--nope"], "p2ptrain harvest --help"),
        (["status"], "p2ptrain group new"),
        (["status", "--code", "ABCD"], "instead of 28"),
        (["group", "join", CODE], "`p2ptrain group join` asks for it"),
        (["group", "join", "--cod", CODE], "No such option"),
        (["status", "--code", ""], "has 0 letters and digits instead of 28"),
        (["doctor", "--code", ""], "has 0 letters and digits instead of 28"),
        (["status", "--code", CODE, "--open"], "give one of them"),
        (["peer", "--code", CODE, "--open"], "give one of them"),
        (["status", "--code", CODE, "--peer", "fe80::1:5710"], "in brackets"),
        (["status", "--code", CODE[:-1] + ("0" if CODE[-1] != "0" else "1")], "mistyped"),
        (["status", "--code", CODE, "--interface", "eth77"], "choose --interface from"),
        (["status", "--code", CODE, *LOOPBACK, "--wait", "0.2"], "p2ptrain doctor"),
        (["status", "--code", CODE, "--wait", "soon"], "write 30s"),
        ([*PEER, "--shard", "1/2"], "--data"),
        ([*PEER, "--data", "digits", "--peer", "here"], "expected HOST:PORT"),
        ([*PEER, "--data", "digits", "--linger", "x"], "10m"),
        ([*PEER, "--data", "digits", "--classes", "a,,b"], "commas"),
        ([*PEER, "--data", "digits", "--job", "none.toml"], "p2ptrain job new"),
        ([*PEER, "--data", "digits", "--profile", "toaster"], "p2ptrain probe"),
        ([*PEER, "--data", "images:nowhere", "--profile", "{profile}"], "no such file or folder"),
        ([*PEER, "--data", "pixels:x", "--profile", "{profile}"], "unknown kind of data set"),
        ([*PEER, "--data", "{npz}", "--classes", "cat,bird", "--profile", "{profile}"], "--classes bird"),
        ([*PEER, "--data", "{npz}", "--shard", "7/2", "--profile", "{profile}"], "--shard 7/2"),
        ([*PEER, "--data", "{npz}", "--dirichlet", "0.3", "--profile", "{profile}"], "add --shard"),
        (["evaluate", "nothing.safetensors", "--data", "images:nowhere"], "no such file or folder"),
        (["evaluate", "nothing.safetensors", "--data", "{npz}"], "p2ptrain harvest"),
        (["export", "nothing.safetensors", "--format", "onnx", "-o", "no/where.onnx"], "no such folder"),
        (["harvest", "--code", CODE, *LOOPBACK, "-o", "."], "name a file with -o"),
        (["job", "check", "none.toml"], "no such job file"),
        (["job", "new", "--data", "{npz}", "--model", "lenett"], "did you mean 'lenet'"),
        (["job", "new", "--data", "{npz}", "--init", "none.safetensors"], "no such file"),
        (["job", "new", "--data", "{npz}", "--input-shape", "8"], "3,32,32"),
    ],
)
def test_what_a_person_got_wrong_is_one_line_with_the_next_step(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"npz": npz(tmp_path), "profile": str(Path(__file__).parents[3] / "peers" / "raspberry-pi-4.toml")}
    status, out, err = run([each.format(**places) for each in arguments], capsys)
    assert status == 2 and not out
    assert err.startswith("p2ptrain: ") and err.count("\n") == 1 and said in err


def npz(folder: Path, num_test: int = 10, num_val: int = 0) -> str:
    """Twenty cats and twenty dogs to train on, some of them again in the other splits."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.array(["cat", "dog"] * 20)
    images = rng.integers(0, 256, (40, 1, 12, 12), dtype=np.uint8)
    splits = {"train": 40, "test": num_test, "val": num_val}
    arrays = {f"x_{split}": images[:n] for split, n in splits.items() if n}
    arrays |= {f"y_{split}": labels[:n] for split, n in splits.items() if n}
    np.savez(folder / "pets.npz", **arrays)
    return f"npz:{folder / 'pets.npz'}"


def test_a_state_directory_in_use_and_a_busy_port_are_one_line(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    from p2ptrain.runtime.store.state_dir import StateDir

    profile = str(Path(__file__).parents[3] / "peers" / "raspberry-pi-4.toml")
    directory = StateDir(state)
    arguments = [*PEER, "--data", npz(tmp_path), "--profile", profile, "--quiet"]
    status, _, err = run(arguments, capsys)
    assert status == 2 and "in use by another peer" in err and err.count("\n") == 1
    directory.close()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        status, _, err = run([*arguments, "--port", str(min(65534, busy.getsockname()[1]))], capsys)
    assert status == 2 and "--port" in err and err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_code_comes_from_a_file_as_editors_save_it(
    encoding: str, state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", typed(f"\r\n\r\n  {CODE}\r\n\r\nkeep this secret\r\n".encode(encoding)))
    assert run(["group", "join"], capsys)[0] == 0
    assert str(load_group(state)) == CODE


def test_the_home_directory_is_meant_where_the_shell_leaves_its_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "Jörg B"))
    assert run(["group", "new", "--state=~/one"], capsys)[0] == 0
    monkeypatch.setenv("P2PTRAIN_STATE", "~/two")
    assert run(["group", "new"], capsys)[0] == 0 and default_state_dir() == tmp_path / "Jörg B" / "two"
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("group.code"))] == [
        "Jörg B/one/group.code",
        "Jörg B/two/group.code",
    ]


def test_a_code_is_made_kept_and_shown_and_the_former_one_is_not_lost(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = run(["group", "new"], capsys)
    code = str(new_group())
    monkeypatch.setattr("sys.stdin", typed(f"{code.lower()}\n"))
    _, out, err = run(["group", "join"], capsys)
    assert out == "" and first.strip() in err and str(load_group(state)) == code
    monkeypatch.setattr("sys.stdin", typed("K7QF\n"))
    assert run(["group", "join"], capsys)[0] == 2 and str(load_group(state)) == code
    monkeypatch.setenv("P2PTRAIN_CODE", first.strip())
    assert json.loads(run(["group", "join", "--json"], capsys)[1]) == {"former": code}
    monkeypatch.delenv("P2PTRAIN_CODE")
    assert str(load_group(state)) == first.strip()
    assert run(["group", "show"], capsys)[1] == first
    _, _, err = run(["group", "new"], capsys)
    assert first.strip() in err
    assert json.loads(run(["group", "show", "--json"], capsys)[1])["open"] is False


def test_job_new_writes_a_complete_commented_file_that_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = npz(tmp_path)
    status, out, _ = run(["job", "new", "--data", spec, "--rounds", "4", "--mode", "replicas", "-o", "j.toml"], capsys)
    job = load_job(tmp_path / "j.toml")
    assert status == 0 and job.id in out
    assert job.training.rounds == 4 and job.mode == "replicas" and job.data.classes == ("cat", "dog")
    assert job.data.input_shape == (1, 12, 12) and len(job.data.mean) == 1
    text = (tmp_path / "j.toml").read_text()
    assert text.count("#") > 20 and set(tomllib.loads(text)) >= {"model", "data", "training", "tasks", "group"}
    assert run(["job", "new", "--data", spec, "-o", "j.toml"], capsys)[0] == 2
    status, out, _ = run(["job", "check", "j.toml", "--data", spec, "--json"], capsys)
    checked = json.loads(out)
    assert checked["id"] == job.id and checked["samples"] == {"cat": 18, "dog": 19}
    assert checked["validation"] == {"cat": 2, "dog": 1}
    assert checked["parameters"] > 1000 and checked["flops_per_sample"]["training"] > 0


def test_a_job_may_go_into_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not read back from there, and what is told is not part of it."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        status, out, err = run(["job", "new", "--data", npz(tmp_path), "-o", "pipe"], capsys)
        (tmp_path / "j.toml").write_bytes(os.read(pipe, 65536))
    finally:
        os.close(pipe)
    assert (status, out) == (0, "") and load_job(tmp_path / "j.toml").id in err


def test_a_job_says_how_many_passes_a_sub_model_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = npz(tmp_path)
    for options, passes, told in [
        ([], 0.0, "as many as are as much work; fewer where validation samples say that more bring nothing"),
        (["--val", "0"], 0.0, "as many as are as much work"),
        (["--passes", "4"], 4.0, "4, or as many as are as much work if that is fewer"),
        (["--mode", "tasks"], 1.0, "1"),
    ]:
        assert run(["job", "new", "--data", spec, *options, "-o", "j.toml", "--force"], capsys)[0] == 0
        assert tasks_of(load_job(tmp_path / "j.toml")).passes == passes
        status, out, _ = run(["job", "check", "j.toml"], capsys)
        assert status == 0 and f"passes    of a class sub-model for one of the whole model: {told}\n" in out
    status, _, err = run(["job", "new", "--data", spec, "--passes", "0.5", "-o", "j.toml", "--force"], capsys)
    assert status == 2 and "tasks.passes: 0.5 is less than one pass" in err


def test_a_job_says_how_much_is_for_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = npz(tmp_path)
    for options, val, told in [
        ([], 0.1, "37 to train on, 3 for validation: cat 18, dog 19"),
        (["--val", "0.25"], 0.25, "31 to train on, 9 for validation: cat 14, dog 17"),
        (["--val", "0"], 0.0, "40 to train on, 0 for validation: cat 20, dog 20"),
    ]:
        assert run(["job", "new", "--data", spec, *options, "-o", "j.toml", "--force"], capsys)[0] == 0
        assert load_job(tmp_path / "j.toml").data.val == val
        status, out, _ = run(["job", "check", "j.toml", "--data", spec], capsys)
        assert status == 0 and f"samples   {told}\n" in out
    status, _, err = run(["job", "new", "--data", spec, "--val", "0.6", "-o", "j.toml", "--force"], capsys)
    assert status == 2 and "--val" in err
    own = npz(tmp_path, num_val=6)
    checked = json.loads(run(["job", "check", "j.toml", "--data", own, "--json"], capsys)[1])
    assert (checked["samples"], checked["validation"]) == ({"cat": 20, "dog": 20}, {"cat": 3, "dog": 3})


def test_a_model_is_judged_on_the_test_split_or_on_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2ptrain.learning.checkpoint import save_model
    from p2ptrain.learning.models import global_model

    run(["job", "new", "--data", npz(tmp_path), "-o", "j.toml"], capsys)
    job = load_job(tmp_path / "j.toml")
    save_model(tmp_path / "m.safetensors", global_model(job, allow_user_code=False).state_dict(), job)
    for num_test, num_val, judged in [(10, 0, 10), (10, 6, 10), (0, 0, 40), (0, 6, 46)]:
        spec = npz(tmp_path, num_test, num_val)
        _, out, _ = run(["evaluate", "m.safetensors", "--data", spec, "--json"], capsys)
        assert json.loads(out)["samples"] == judged


def test_a_model_file_is_evaluated_exported_and_attributed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from p2ptrain.learning.checkpoint import read_model, save_model
    from p2ptrain.learning.models import global_model

    spec = npz(tmp_path)
    run(["job", "new", "--data", spec, "-o", "j.toml"], capsys)
    job = load_job(tmp_path / "j.toml")
    save_model(tmp_path / "m.safetensors", global_model(job, allow_user_code=False).state_dict(), job)
    status, out, _ = run(["evaluate", "m.safetensors", "--data", spec, "--json"], capsys)
    assert status == 0 and 0 <= json.loads(out)["accuracy"] <= 1 and json.loads(out)["samples"] == 10
    assert "cat" in run(["evaluate", "m.safetensors", "--data", spec, "--confusion"], capsys)[1]
    assert run(["attribute", "m.safetensors", "--data", spec, "-o", "a.safetensors"], capsys)[0] == 0
    state, scores, card = read_model(tmp_path / "a.safetensors")
    assert scores and card.job_id == job.id and all(s.shape[0] == 2 for s in scores.values())
    assert state.keys() == read_model(tmp_path / "m.safetensors")[0].keys()
    assert run(["job", "new", "--data", spec, "--init", "a.safetensors", "-o", "k.toml"], capsys)[0] == 0
    assert len(load_job(tmp_path / "k.toml").model.init) == 64


@pytest.mark.parametrize(
    "arguments",
    [
        ["group", "new"],
        ["status", "--code", CODE, *LOOPBACK, "--wait", "0.1"],
        ["doctor", "--code", CODE, *LOOPBACK, "--wait", "0.1", "--json"],
        ["peer", "--help"],
        ["watch", "--code", "x"],
    ],
)
def test_what_only_looks_never_imports_torch(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom p2ptrain.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "import p2ptrain.api, p2ptrain.cli.shared.peer_session, p2ptrain.ui.watch, p2ptrain.cli.watch\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    environment = os.environ | {"P2PTRAIN_STATE": str(tmp_path / "s")}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("5", 5), ("forever", float("inf"))]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds
    with pytest.raises(click.BadParameter):
        Names().convert("a,a", None, None)


def test_the_check_before_the_start_measures_and_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2ptrain.runtime import preflight as p

    monkeypatch.setattr(p, "_is_calm", lambda: True)
    request = p.Request(data=npz(tmp_path), device="cpu", classes=("cat",))
    found = p.preflight(request, tmp_path)
    assert found.samples == {"cat": 20} and found.flops_per_s > 1e6 and found.memory_bytes > 0 and found.device == "cpu"
    monkeypatch.setattr(p, "_ask", lambda request: {"samples": {"cat": 20}} if not request.device else {})
    assert p.preflight(request, tmp_path).flops_per_s == found.flops_per_s


def test_the_check_before_the_start_tells_what_is_for_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2ptrain.cli.peer import _measured
    from p2ptrain.runtime import preflight as p
    from p2ptrain.runtime.node.peer_options import PeerOptions

    spec = npz(tmp_path)
    run(["job", "new", "--data", spec, "-o", "j.toml"], capsys)
    job = load_job(tmp_path / "j.toml")
    text = job.to_json()
    found = [p.check_data(p.Request(data=spec, job=text, shard=shard)) for shard in ("", "1/2", "2/2")]
    assert found[0] == {"samples": {"cat": 18, "dog": 19}, "validation": 3}
    assert sum(each["validation"] for each in found[1:]) == 3
    assert p.check_data(p.Request(data=spec)) == {"samples": {"cat": 20, "dog": 20}, "validation": 0}
    assert p.check_data(p.Request(data=npz(tmp_path, num_val=6)))["validation"] == 6
    profile = str(Path(__file__).parents[3] / "peers" / "raspberry-pi-4.toml")
    _measured(PeerOptions(npz(tmp_path), "laptop"), job, profile, "cpu", tmp_path, silent=False)
    assert "37 samples of 2 classes (cat, dog), and 3 for validation" in capsys.readouterr().out


def test_what_fresh_cannot_set_aside_is_said(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from p2ptrain.cli.shared.peer_session import prepare_state
    from p2ptrain.runtime.store.state_dir import StateDir

    (state / "0123456789abcdef").mkdir(parents=True)
    (state / "before-fresh").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # another user's: it stays
    with pytest.raises(UserError, match=r"--fresh: .*before-fresh can't be set aside .File exists."):
        prepare_state(state, fresh=True)
    StateDir(state).close()  # it is free again


def test_fresh_sets_jobs_aside_and_keeps_the_identity(state: Path) -> None:
    from p2ptrain.cli.shared.peer_session import SET_ASIDE, prepare_state
    from p2ptrain.net.keys import load_or_make_identity

    identity = load_or_make_identity(state)
    for _ in range(2):
        (state / "0123456789abcdef").mkdir()
        prepare_state(state, fresh=False)
        assert (state / "0123456789abcdef").is_dir()
        prepare_state(state, fresh=True)
        assert not (state / "0123456789abcdef").exists() and (state / SET_ASIDE / "0123456789abcdef").is_dir()
    assert load_or_make_identity(state) == identity


@pytest.mark.parametrize(
    ("mode", "table"), [("auto", "tasks"), ("replicas", "tasks"), ("pipeline", "pipeline"), ("split", "split")]
)
def test_a_job_file_has_the_table_of_its_mode(
    mode: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = npz(tmp_path, num_val=6)
    assert run(["job", "new", "--data", spec, "--mode", mode, "-o", "j.toml"], capsys)[0] == 0
    tables = tomllib.loads((tmp_path / "j.toml").read_text())
    job = load_job(tmp_path / "j.toml")
    assert {"tasks", "pipeline", "split"} & tables.keys() == {table}
    assert tables[table].keys() == dataclasses.asdict(mode_tables()[table]()).keys()
    assert (job.mode, job.data.val) == (mode, 0.1)
    checked = json.loads(run(["job", "check", "j.toml", "--data", spec, "--json"], capsys)[1])
    assert checked["mode"] == mode and ("max_groups" in checked) == (mode == "auto")
    assert checked["validation"] == {"cat": 3, "dog": 3}


def test_an_option_of_another_mode_has_its_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mode", "pipeline", "--micro-batches", "4", "--trunk", "1"]
    assert run(["job", "new", "--data", npz(tmp_path), *options, "-o", "j.toml"], capsys)[0] == 0
    job = load_job(tmp_path / "j.toml")
    assert [(type(table).TABLE, len(job.tables)) for table in job.tables] == [("pipeline", 2), ("tasks", 2)]
    assert tomllib.loads((tmp_path / "j.toml").read_text())["pipeline"]["micro_batches"] == 4


def test_a_pipeline_takes_peers_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from p2ptrain.runtime import preflight as p

    spec = npz(tmp_path, num_val=6)
    for mode in ("replicas", "pipeline"):
        assert run(["job", "new", "--data", spec, "--mode", mode, "-o", f"{mode}.toml"], capsys)[0] == 0
    status, _, err = run(["peer", "--open", "--job", "replicas.toml"], capsys)
    assert status != 0 and 'a job of mode "replicas" is trained on own samples: name them with --data' in err
    status, _, err = run(["peer", "--open", "--job", "pipeline.toml", "--out", "model", "--no-model"], capsys)
    assert status != 0 and "OPEN GROUP: anyone in this network can join" in err
    found = [
        p.check_data(p.Request(data=spec, job=load_job(tmp_path / f"{mode}.toml").to_json()))
        for mode in ("replicas", "pipeline")
    ]
    assert [each["validation"] for each in found] == [6, 6]
    assert found[0]["samples"] == found[1]["samples"] == {"cat": 20, "dog": 20}


def test_a_model_that_the_mode_cant_train_is_said_when_the_job_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mode asks what it needs: class sub-models a head that can be divided, a pipeline a chain of blocks."""
    spec = npz(tmp_path)
    for mode, fits in (("tasks", False), ("replicas", True)):
        options = ["--mode", mode, "--width", "0.01", "-o", f"{mode}.toml"]
        assert run(["job", "new", "--data", spec, *options], capsys)[0] == 0
        assert (run(["job", "check", f"{mode}.toml"], capsys)[0] == 0) == fits


def test_a_model_of_ones_own_from_the_template_to_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, _ = run(["job", "new", "--model-template", "their_net.py"], capsys)
    assert status == 0 and "p2ptrain job new --data SPEC --model their_net:build" in out
    assert run(["job", "new", "--model-template", "their_net.py"], capsys)[0] == 2  # what was changed is not lost
    for name in ("my-net.py", "class.py", "torch.py"):  # that would take torch's place in this folder
        assert run(["job", "new", "--model-template", name], capsys)[0] == 2 and not Path(name).exists()
    (tmp_path / "below").mkdir()
    _, out, _ = run(["job", "new", "--model-template", "below/other_net.py"], capsys)
    assert f"next, in {tmp_path / 'below'}: p2ptrain job new" in out
    spec = npz(tmp_path)
    status, out, _ = run(["job", "new", "--data", spec, "--model", "their_net:build", "-o", "j.toml"], capsys)
    assert status == 0 and out.splitlines()[-1].endswith("--allow-model their_net:build")
    allow = ["--data", spec, "--allow-model", "their_net:build"]
    status, out, _ = run(["job", "check", "j.toml", *allow], capsys)
    assert status == 0 and "class sub-models" in out and out.endswith("fine\n")
    text = Path("their_net.py").read_text().replace("torch.flatten(x, 1)", "torch.flatten(x, 2)")
    Path("their_net.py").write_text(text)
    sys.modules.pop("their_net")
    status, out, err = run(["job", "check", "j.toml", *allow], capsys)
    assert status == 2 and not out and "their_net.py, line " in err and "(return self.head(torch.flatten(x, 2))" in err


def test_classes_of_other_devices_are_named_when_the_job_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = npz(tmp_path)
    assert run(["job", "new", "--data", spec, "--classes", "cat,bird,dog", "-o", "j.toml"], capsys)[0] == 0
    assert load_job(tmp_path / "j.toml").data.classes == ("cat", "bird", "dog")
    assert run(["job", "check", "j.toml", "--data", spec], capsys)[0] == 0
    status, _, err = run(["job", "new", "--data", spec, "--classes", "cat,bird", "--force", "-o", "j.toml"], capsys)
    assert status == 2 and "the data have dog too" in err


def test_a_job_that_is_refused_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    spec = npz(tmp_path)
    torch.save({"weight": torch.zeros(3, 3)}, "other.pth")
    Path("no.pth").write_text("hello")
    for words, why in (
        (["--init", "other.pth"], "nothing in the checkpoint fits"),
        (["--init", "no.pth"], "no weights that torch can read; save them"),
        (["--name", "x" * 5000], "longer than 4096"),
        (["--seed", str(2**70)], "seed: "),
        (["--seed", "-1"], "seed: -1 is outside"),
    ):
        status, _, err = run(["job", "new", "--data", spec, *words, "-o", "job.toml"], capsys)
        assert status == 2 and why in err and not Path("job.toml").exists(), err


def test_job_new_and_job_check_say_what_a_checkpoint_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from p2ptrain.learning.models import build_model

    spec = npz(tmp_path)
    state = build_model("lenet", input_shape=(1, 12, 12), num_classes=1000, seed=1).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "w.pth")
    status, out, _ = run(["job", "new", "--data", spec, "--init", "w.pth", "-o", "j.toml"], capsys)
    words = "6 of 8 tensors are taken; other shapes, so with fresh weights: fc2.weight, fc2.bias"
    assert status == 0 and words in out and Path("j-w.safetensors").is_file()
    status, out, _ = run(["job", "check", "j.toml", "--data", spec], capsys)
    assert status == 0 and words in out
    state["conv1.weight"][0] = float("nan")
    torch.save(state, "w.pth")
    status, out, err = run(["job", "new", "--data", spec, "--init", "w.pth", "--force", "-o", "j.toml"], capsys)
    assert status == 2 and "25 of 600 numbers of tensor 'conv1.weight' are not finite" in err
