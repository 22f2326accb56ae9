#!/bin/sh
# Groups in virtual time to which anything happens at any moment: scripts/explore.sh [number of seeds]
# A seed that fails is named, and P2PTRAIN_SEED=<seed> pytest tests/virtual/test_explorer.py repeats it.
cd "$(dirname "$0")/.." || exit 1
P2PTRAIN_EXPLORE="${1:-1000}" exec python -m pytest tests/virtual/test_explorer.py -q -p no:cacheprovider
