#!/usr/bin/env bash
# Installs into .venv, then runs the style checks, the type checks and the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh demo,rich,onnx,bench,test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ $# -gt 0 ]; then
  .venv/bin/mypy
  exec .venv/bin/python -m pytest "$@"
fi
# Types are checked beside the first tests: that takes one core for a minute.
said=$(mktemp)
.venv/bin/mypy > "$said" 2>&1 &
types=$!
trap 'kill $types 2> /dev/null || true; rm -f "$said"' EXIT
# Tests within one process share the cores, a thread each. Those of real peers, which wait for one another, come after,
# three files at once. What failed of these is run once more, one after another, and fails if it fails again; anything
# else that pytest ends with (stopped, an error of its own) is final, as then not all tests ran. Files are begun in the
# order that tests/conftest.py gives them.
files="--dist loadfile --no-loadscope-reorder"
status=0
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 8 $files tests/unit tests/virtual ||
  status=$?
[ $status -le 1 ] || exit $status
wait $types || status=1
trap 'rm -f "$said"' EXIT
cat "$said"
[ $status -eq 0 ] || exit $status
together="tests/sockets tests/processes"
.venv/bin/python -m pytest --cache-clear --numprocesses 3 $files $together ||
  { [ $? -eq 1 ] && .venv/bin/python -m pytest --last-failed --last-failed-no-failures none $together; }
