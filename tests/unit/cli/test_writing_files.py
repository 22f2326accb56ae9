"""Files that commands write: whole or not at all, and over nothing that is not theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2ptrain.cli.shared.options import check_gives_way, write_text
from p2ptrain.errors import UserError


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
