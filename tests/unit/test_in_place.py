"""A file is there whole, or as it was before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2ptrain.lasting import in_place_of


def test_all_of_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with in_place_of(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.parent == tmp_path
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_fails_changes_nothing_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), in_place_of(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_who_may_read_it_is_as_asked_for(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        for mode in (0o600, 0o666):
            with in_place_of(tmp_path / "file", mode=mode):
                pass
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode & ~0o022
    finally:
        os.umask(umask)


def test_another_way_to_take_the_place_may_refuse(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileExistsError), in_place_of(path, take=os.link) as beside:
        beside.write_text("new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
