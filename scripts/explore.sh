#!/bin/sh
# Groups in virtual time to which anything happens at any moment: scripts/explore.sh [number of seeds] [pipeline | split]
# A seed that fails is named, and P2PTRAIN_SEED=<seed> pytest on the same file repeats it.
cd "$(dirname "$0")/.." || exit 1
case "${2:-pipeline}" in
    pipeline) file=tests/virtual/test_explorer.py ;;
    split) file=tests/virtual/test_unit_explorer.py ;;
    *) echo "scripts/explore.sh: $2: pipeline or split" >&2; exit 2 ;;
esac
P2PTRAIN_EXPLORE="${1:-1000}" exec python -m pytest "$file" -q -p no:cacheprovider
