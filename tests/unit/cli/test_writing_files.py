"""Files that commands write: whole or not at all, and over nothing that is not theirs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click
import pytest
import torch
from safetensors import SafetensorError

from p2ptrain.cli import main as entry
from p2ptrain.cli.shared.model_check import as_safetensors
from p2ptrain.cli.shared.outputs import check_apart, check_folder, check_gives_way, check_output, seen_from, write_text
from p2ptrain.errors import UserError
from p2ptrain.learning import checkpoint, snapshots


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.toml"
    write_text(path, "before")

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(UserError, match="can't be written"):
        disk.setattr(Path, "write_text", full)
        write_text(path, "after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["job.toml"]
    link = tmp_path / "link"
    link.symlink_to(path)
    write_text(link, "after")
    assert link.is_symlink() and path.read_text() == "after"
    write_text(Path(os.devnull), "as it comes")
    assert not Path(os.devnull).is_file()


def test_only_a_file_that_begins_so_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "page"
    check_gives_way(path, "<!-- ours -->", "page", force=False)
    path.write_text("<!-- ours --> old")
    check_gives_way(path, "<!-- ours -->", "page", force=False)
    path.write_text("a letter")
    with pytest.raises(UserError, match=r"page: is there already and is no page; name another file, or --force"):
        check_gives_way(path, "<!-- ours -->", "page", force=False)
    check_gives_way(path, "<!-- ours -->", "page", force=True)


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "read-only"
    elsewhere.mkdir()
    link = tmp_path / "link"
    link.symlink_to(elsewhere / "model")
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != elsewhere)
    for path in (elsewhere / "model", link):
        with pytest.raises(UserError, match=r"this user can't write to .*read-only; name another place with -o"):
            check_output(path)
    assert check_output(tmp_path / "model") == tmp_path / "model"


def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no ordinary file"):
        check_output(Path(os.devnull))
    assert check_output(Path(os.devnull), is_text=True) == Path(os.devnull)
    assert check_output(tmp_path / "new") == tmp_path / "new"


def test_what_can_not_be_written_to_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path, "is a folder; name a file with --out"),
        (tmp_path / "none" / "x", "no such folder: .*none; make it first"),
        (here / "x", "no such folder: .*here; make it first"),
        (tmp_path / "pipe", "is no ordinary file"),
    ):
        with pytest.raises(UserError, match=why):
            check_output(path, option="--out")
    assert check_output(tmp_path / "pipe", is_text=True)
    with pytest.raises(UserError, match=r"--out .*here: can't be made \(it is no folder\)"):
        check_folder(here)
    with pytest.raises(UserError, match=r"--out .*x: can't be made \(.*\)"):
        check_folder(here / "x")
    assert check_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(UserError, match=r"--card and -o both name .*here"):
        check_apart(here, "--card", tmp_path / "a" / ".." / "here", "-o")
    check_apart(Path(os.devnull), "--csv", Path(os.devnull), "-o")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may do anything
    for look, path in ((check_output, here), (check_output, tmp_path / "new"), (check_folder, tmp_path)):
        with pytest.raises(UserError, match="this user can't write to"):
            look(path)
    with pytest.raises(UserError, match="may not be written to"):
        check_output(tmp_path / "pipe", is_text=True)


def test_weights_are_written_beside_a_job_file_and_beside_nothing_else(tmp_path: Path) -> None:
    init = tmp_path / "net.pth"
    torch.save({"a": torch.zeros(2)}, init)
    job_file = tmp_path / "job.toml"
    with (
        pytest.raises(UserError, match=r"is written as \.safetensors beside the job file, and -o .* is no file"),
        as_safetensors(init, Path(os.devnull), force=True),
    ):
        pass
    with pytest.raises(UserError, match="no job"), as_safetensors(init, job_file, force=False) as made:
        assert made == tmp_path / "job-net.safetensors" and made.is_file()
        raise UserError("no job comes of it")
    assert not made.exists()
    with as_safetensors(init, job_file, force=False) as made:
        pass
    with pytest.raises(UserError, match="exists already"), as_safetensors(init, job_file, force=False):
        pass
    with pytest.raises(UserError, match="no job"), as_safetensors(init, job_file, force=True):
        raise UserError("no job comes of it")
    assert made.exists(), "it was there before"
    assert seen_from(tmp_path / "jobs.toml", made) == "job-net.safetensors"
    assert seen_from(Path(os.devnull), made) == made.resolve().as_posix(), "nobody knows where that goes"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "here/x"), "here/x: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "can't be written or read: Read-only file system"),
        (MemoryError(), "too little memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "tried to allocate"),
    ],
)
def test_what_a_disk_or_the_memory_refuses_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(entry.cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        entry.main([])
    told = capsys.readouterr().err
    assert ended.value.code == 1 and said in told and told.count("\n") == 1


@pytest.mark.parametrize("error", [click.Abort(), KeyboardInterrupt()], ids=repr)
def test_ctrl_c_is_one_word_and_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry.cli, "main", lambda **_: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as ended:
        entry.main([])
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(errno.EINVAL, "Invalid argument"), RuntimeError("refers to a single memory location")):
        monkeypatch.setattr(entry.cli, "main", lambda error=error, **_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            entry.main([])


def test_a_model_on_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own for what the disk refuses."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(UserError, match=r"can't write the model .*No space left.*a disk with room"):
        checkpoint._write(tmp_path / "model.safetensors", {"a": torch.zeros(2)}, {})
    assert not os.listdir(tmp_path)
