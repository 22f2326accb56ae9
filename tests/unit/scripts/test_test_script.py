"""When ``test.sh`` runs tests of real peers once more, and what it ends with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "test.sh"


@pytest.mark.parametrize(
    ("ends", "num_runs", "passes"),
    [
        ((0, 0), 2, True),
        ((1,), 1, False),
        ((0, 1, 0), 3, True),
        ((0, 1, 1), 3, False),
        ((0, 2, 0), 2, False),
        ((0, 5, 0), 2, False),
        ((0, 137, 0), 2, False),
    ],
)
def test_only_what_failed_is_run_once_more(tmp_path: Path, ends: tuple[int, ...], num_runs: int, passes: bool) -> None:
    done, said = run(tmp_path, ends)
    assert len(said) == num_runs, done.stderr
    assert (done.returncode == 0) == passes
    assert all("--cache-clear" in run for run in said[1:2]), "of this run only"
    assert ["--last-failed" in run.split() for run in said] == [False, False, True][:num_runs]


def test_what_is_wrong_with_types_is_told_and_ends_it(tmp_path: Path) -> None:
    done, said = run(tmp_path, (0, 0), mypy="#!/bin/sh\necho p2ptrain/api.py: no such type; exit 1\n")
    assert done.returncode == 1 and "no such type" in done.stdout and len(said) == 1


def run(
    tmp_path: Path, ends: tuple[int, ...], mypy: str = "#!/bin/sh\n"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What ``test.sh`` ended with where pytest ends with these, in turn; and what pytest was called with."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    bin_dir = tmp_path / ".venv" / "bin"
    bin_dir.mkdir(parents=True)
    runs = tmp_path / "runs"
    runs.touch()
    (tmp_path / "ends").write_text("\n".join(map(str, ends)) + "\n")
    nothing = "#!/bin/sh\n"
    for path, text in {
        bin_dir / "ruff": nothing,
        bin_dir / "mypy": mypy,
        tmp_path / "scripts/setup.sh": nothing,
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    python = bin_dir / "python"
    python.write_text('#!/bin/sh\necho "$@" >> runs\nexit $(sed -n "$(wc -l < runs)p" ends)\n')
    python.chmod(0o755)
    done = subprocess.run([tmp_path / "scripts" / "test.sh"], check=False, capture_output=True, text=True)
    return done, runs.read_text().splitlines()
