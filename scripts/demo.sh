#!/usr/bin/env bash
# The two-minute demonstration, from a fresh clone: installs into .venv, then runs `p2ptrain demo` with these arguments.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/setup.sh" "${P2PTRAIN_EXTRAS:-demo}"
exec "$root/.venv/bin/p2ptrain" demo "$@"
