#!/usr/bin/env bash
# Installs into .venv, then runs the style checks, the type checks and the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh demo,rich,onnx,bench,test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ $# -gt 0 ]; then
  exec .venv/bin/python -m pytest "$@"
fi
# Tests within one process share the cores, a thread each. Those of real peers, which wait for one another, come after,
# three files at once. What failed of these is run once more, one after another, and fails if it fails again; anything
# else that pytest ends with (stopped, an error of its own) is final, as then not all tests ran.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile tests/unit tests/virtual
together="tests/sockets tests/processes"
.venv/bin/python -m pytest --cache-clear --numprocesses 3 --dist loadfile $together ||
  { [ $? -eq 1 ] && .venv/bin/python -m pytest --last-failed --last-failed-no-failures none $together; }
