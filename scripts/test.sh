#!/usr/bin/env bash
# The gate: lint, formats, types, then the tests. CONTRIBUTING.md says what each part is for.
#
#   bash scripts/test.sh [pytest arguments, e.g. tests/eval -k resume]
#   bash scripts/test.sh --all          the slow tests too (minutes each, more samples), and the GPU's where there is one
#
# hardware   any CPU; made for 2 cores: one pytest process per core, at most 4, with one thread each (two processes with two
#            threads each on two cores slow each other down many times over)
# time       below 10 minutes on 2 cores, and about 2 for the first run's installation
set -euo pipefail
EXTRA_REQUIREMENTS=requirements-dev.txt
source "$(dirname "$0")/setup.sh"
if [ "${1:-}" = "--all" ]; then
    set -- -m "" "${@:2}"
fi

"$HSD_VENV/bin/ruff" check --quiet .
"$HSD_VENV/bin/ruff" format --quiet --check .
"$HSD_VENV/bin/mypy"
OMP_NUM_THREADS=1 "$PYTHON_VENV" -m pytest -q -n logical --maxprocesses 4 --dist worksteal "$@"
