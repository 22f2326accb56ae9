#!/usr/bin/env bash
# Installs into .venv, then runs the style checks, the type checks and the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh demo,rich,onnx,bench,test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
