#!/usr/bin/env bash
# The tests of target, engine and model with the oldest supported transformers; scripts/test.sh runs all with the newest (the pin).
#
#   bash scripts/test_versions.sh [pytest arguments]
#
# The oldest version is the lower bound in pyproject.toml. It is unpacked, with the huggingface_hub it needs, into a folder
# of the environment that comes before the installed one in PYTHONPATH: torch and all else is shared (130 MB, once).
#
# hardware   any CPU; made for 2 cores
set -euo pipefail
EXTRA_REQUIREMENTS=requirements-dev.txt
source "$(dirname "$0")/setup.sh"

OLDEST=$(grep -oE 'transformers>=[0-9.]+' pyproject.toml | cut -d= -f2)
PLACE=$PWD/$HSD_VENV/transformers-$OLDEST
case $HSD_VENV in /*) PLACE=$HSD_VENV/transformers-$OLDEST ;; esac
if [ ! -f "$PLACE/complete" ]; then
    "$PYTHON_VENV" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$PLACE" \
        "transformers==$OLDEST" "huggingface_hub>=1.5,<2"
    touch "$PLACE/complete"
fi
export PYTHONPATH=$PLACE OMP_NUM_THREADS=1
"$PYTHON_VENV" -c 'import sys, transformers as t; print("transformers", t.__version__); sys.exit(not t.__file__.startswith(sys.argv[1]))' "$PLACE"
"$PYTHON_VENV" -m pytest -q -n logical --maxprocesses 4 --dist worksteal \
    tests/golden tests/eagle --ignore tests/eagle/train "$@"
