"""A service file says what was asked for, in the words of its system, and holds no secret."""

from __future__ import annotations

import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run

CODE = "V8YJ-498H-E8KE-4A5S-JKCE-HCNC-TPSC"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("P2PTRAIN_STATE", str(tmp_path / "my state"))
    monkeypatch.delenv("P2PTRAIN_CODE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ["--data", "images:my photos/100% $HOME", "--name", 'a "board"', "--linger", "forever"]


def test_a_unit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(["service", "install", "--kind", "systemd", "--", *OPTIONS], capsys)
    assert status == 0 and "--write" in err and not (home / ".config").exists()
    lines = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(lines["ExecStart"])]
    assert words == [sys.executable, "-m", "p2ptrain.cli.main", "peer", *OPTIONS]
    assert lines["Environment"] == f'"P2PTRAIN_STATE={home / "my state"}"' and lines["WorkingDirectory"] == str(home)
    assert (lines["Restart"], lines["RestartPreventExitStatus"]) == ("on-failure", "2")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["service", "install", "--kind", "systemd", "--write", "--", *OPTIONS], capsys)[0] == 0
    path = home / ".config" / "systemd" / "user" / "p2ptrain.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "p2ptrain.service:" not in done.stderr, done.stderr


def test_a_plist(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    status, out, _ = run(["service", "install", "--write", "--", *OPTIONS], capsys)
    path = home / "Library" / "LaunchAgents" / "org.p2ptrain.peer.plist"
    assert status == 0 and f"launchctl load -w {path}" in out
    plain = plistlib.loads(path.read_bytes())
    assert plain["ProgramArguments"][-len(OPTIONS) :] == OPTIONS
    assert plain["EnvironmentVariables"] == {"P2PTRAIN_STATE": str(home / "my state")}
    assert plain["KeepAlive"] == {"SuccessfulExit": False}


def test_another_file_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["service", "install", "--kind", "systemd", "--write"]
    status, out, _ = run([*command, "--", *OPTIONS], capsys)
    assert status == 0 and "systemctl --user enable" in out.replace("daemon-reload && systemctl --user ", "")
    assert run([*command, "--", *OPTIONS], capsys)[0] == 0, "the same once more"
    status, _, err = run([*command, "--", "--linger", "forever"], capsys)
    assert status == 2 and "--force" in err
    assert run([*command, "--force", "--", "--linger", "forever"], capsys)[0] == 0


def test_wrong_options_and_secrets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(["service", "install", "--", "--frobnicate"], capsys)
    assert status == 2 and "--frobnicate" in err
    for options in (["--code", CODE], [f"--code={CODE}"]):
        status, out, err = run(["service", "install", "--", *options], capsys)
        assert status == 2 and "group join" in err and CODE not in out + err
    status, _, err = run(["service", "install", "--", "--name", "a\nb"], capsys)
    assert status == 2 and "can't hold" in err
