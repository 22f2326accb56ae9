#!/usr/bin/env python3
"""Run a command beside so many busy processes: what waits for events passes all the same, what counts on time does not.

scripts/under_load.py 20 -- .venv/bin/python -m pytest tests/processes/test_long_run.py
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

BUSY = "while True: pass"


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """``count`` processes that each want a whole core; they end with this one, however it ends."""
    code = f"import os, threading\nthreading.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()\n{BUSY}"
    busy = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or not arguments[0].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    count, command = int(arguments[0]), list(arguments[1:])
    if command[0] == "--":
        command = command[1:]
    with load(count):
        status = subprocess.run(command, check=False).returncode
        print(f"beside {count} busy processes, load {os.getloadavg()[0]:.1f}: exit {status}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
