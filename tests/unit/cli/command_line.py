"""A command as a person types it."""

from __future__ import annotations

import io

import pytest

from p2ptrain.cli.main import main


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def typed(text: str | bytes) -> io.TextIOWrapper:
    """Into the standard input, which is no terminal."""
    return io.TextIOWrapper(io.BytesIO(text.encode() if isinstance(text, str) else text))
