#!/usr/bin/env bash
# Writes scripts/locked.txt: every package that p2ptrain, all its extras and the set-up itself need, with the version of
# constraints.txt where that names one, and the hashes of all files of that version, for every platform.
# Run it after a change of setup.cfg or constraints.txt; `scripts/setup.sh` takes it with P2PTRAIN_HASHES=1.
#
# torch is left out, on purpose: its builds for CPU and GPU come from indexes of their own, with other files under the
# same version. So no list of hashes would be right for all. What it needs beside itself is here.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check uv==0.13.9
"$folder/venv/bin/python" - setup.cfg >"$folder/wanted.txt" <<'PYTHON'
import configparser
import sys

setup = configparser.ConfigParser()
setup.read(sys.argv[1])
wanted = setup["options"]["install_requires"].split("\n")
for extra in setup["options.extras_require"].values():
    wanted += extra.split("\n")
print("\n".join(line for line in wanted if line and not line.startswith("torch")))
of_torch = ["filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"]
of_set_up = ["pip", "setuptools>=77"]
print("\n".join(of_torch + of_set_up))
PYTHON
grep -v '^torch==' constraints.txt >"$folder/constraints.txt"
"$folder/venv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-header \
  --no-annotate ${PIP_INDEX_URL:+--default-index "$PIP_INDEX_URL"} \
  --constraint "$folder/constraints.txt" "$folder/wanted.txt" --output-file "$folder/locked.txt" >/dev/null
{
  echo "# Written by scripts/lock.sh, don't edit. For every platform; without torch (scripts/lock.sh says why)."
  cat "$folder/locked.txt"
} >scripts/locked.txt
echo "scripts/locked.txt: $(grep -c '==' scripts/locked.txt) packages, $(grep -c 'sha256:' scripts/locked.txt) files"
