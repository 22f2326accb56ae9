#!/usr/bin/env bash
# Runs the unit tests with every Python that p2ptrain is said to run on and that is here: Debian's, or pyenv's.
# Each has a virtual environment of its own, .venv-3.11 and so on. Arguments go to pytest, in place of tests/unit.
#
#   scripts/test_versions.sh
#   VERSIONS="3.12 3.13" scripts/test_versions.sh tests/unit/wire tests/unit/protocol
set -euo pipefail
cd "$(dirname "$0")/.."
tests=("${@:-tests/unit}")
ran=() absent=() failed=()
for version in ${VERSIONS:-3.11 3.12 3.13}; do
  python=""
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    # A shim of pyenv is there for versions that are not chosen, too: it counts only if it runs.
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    absent+=("$version")
    continue
  fi
  echo "=== Python $version: $python" >&2
  if PYTHON=$python VENV=.venv-$version scripts/setup.sh demo,rich,onnx,bench,test &&
    ".venv-$version/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}"; then
    ran+=("$version")
  else
    failed+=("$version")
  fi
done
echo "passed: ${ran[*]:-none}; failed: ${failed[*]:-none}; not here: ${absent[*]:-none}" >&2
[ ${#failed[@]} -eq 0 ] && [ ${#ran[@]} -gt 0 ]
