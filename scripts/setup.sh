#!/usr/bin/env bash
# Makes .venv in the project's root and installs p2ptrain into it, with the extras named as arguments.
# Does nothing when the last run installed the same things. Used by demo.sh and test.sh.
#
#   scripts/setup.sh demo,test
#
# PYTHON chooses the interpreter (3.11 or later), VENV another place than .venv. P2PTRAIN_HASHES=1 takes nothing but the
# very files whose hashes stand in scripts/locked.txt (all extras, whichever are asked for), except for torch:
# scripts/lock.sh says why.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-demo}
venv=${VENV:-.venv}
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "p2ptrain needs Python 3.11 or later, and found none. Install it, or name it: PYTHON=/path/to/python3.11 $0" >&2
  exit 2
fi
if [ ! -x "$venv/bin/python" ]; then
  echo "making $venv with $("$python" --version)" >&2
  "$python" -m venv "$venv" || {
    echo "could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 2
  }
fi
stamp=$venv/.p2ptrain-installed
hashes=${P2PTRAIN_HASHES:-0}
want="$extras $hashes $(cat setup.cfg pyproject.toml constraints.txt scripts/locked.txt | cksum)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
  echo "installing p2ptrain[$extras] (torch is a large download; once only)" >&2
  install=("$venv/bin/python" -m pip install -qq --disable-pip-version-check)
  torch=$(grep '^torch==' constraints.txt)
  if [ "$hashes" = 1 ]; then
    # pip itself first: what it installs the rest with is checked, too.
    "${install[@]}" --require-hashes -r <(awk '/^pip==/ {own = 1} own {print} own && !/\\$/ {exit}' scripts/locked.txt)
    "${install[@]}" --require-hashes -r scripts/locked.txt
    "${install[@]}" --constraint constraints.txt "$torch"
    "${install[@]}" --no-build-isolation --no-deps --editable .
    "$venv/bin/python" -m pip check --disable-pip-version-check >&2
  else
    "${install[@]}" --upgrade pip setuptools
    # The pinned torch first and by itself: an index may hold a newer one that the resolver would rather have.
    "${install[@]}" "$torch"
    "${install[@]}" --constraint constraints.txt --editable ".[$extras]"
  fi
  echo "$want" >"$stamp"
fi
