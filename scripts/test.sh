#!/usr/bin/env bash
# Lint, then run the tests. The slow ones (minutes, more samples) run with: bash scripts/test.sh -m slow
#
#   bash scripts/test.sh [pytest arguments, e.g. tests/eval -k resume]
#
# hardware   any CPU; made for 2 cores. One thread per process: two processes with two threads each on two cores slow
#            each other down many times over.
set -euo pipefail
EXTRA_REQUIREMENTS=requirements-dev.txt
source "$(dirname "$0")/setup.sh"

"$HSD_VENV/bin/ruff" check --quiet .
OMP_NUM_THREADS=1 "$PYTHON_VENV" -m pytest -q "$@"
