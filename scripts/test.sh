#!/usr/bin/env bash
# Run every test.
#
#   bash scripts/test.sh [pytest arguments, e.g. tests/eval -k resume]
#
# hardware   any CPU; made for 2 cores. One thread per process: two processes with two threads each on two cores slow
#            each other down many times over.
set -euo pipefail
EXTRA_REQUIREMENTS=requirements-dev.txt
source "$(dirname "$0")/setup.sh"

OMP_NUM_THREADS=1 "$PYTHON_VENV" -m pytest -q "$@"
