#!/usr/bin/env bash
# What a GPU must show, in one command: tests, exactness, CUDA graphs, time of a step, attention, pairs, batches.
#
#   bash scripts/gpu_check.sh OUT [--dry-run] [--no-setup] [--parts PART ...]
#
# what       writes OUT/summary.txt, OUT/results.json and OUT/log.txt; docs/gpu.md says how to read them
# hardware   one GPU with 24 GB or more (the Llama-3.1-8B shape in bfloat16); --dry-run: any CPU, tiny sizes
# time       9 minutes at most on a GPU, each part with a limit of its own; the dry run about 95 s of processor time
# network    none with --no-setup, which uses PYTHON (default python3) as it is: torch, transformers and safetensors
#            are needed, what else is missing is reported. Without --no-setup scripts/setup.sh may install packages
set -euo pipefail
PYTHON=${PYTHON:-python3} SETUP=1 ARGUMENTS=()
for argument in "$@"; do
    if [ "$argument" = --no-setup ]; then SETUP=0; else ARGUMENTS+=("$argument"); fi
done
# OUT is relative to the directory the script is called from.
if [ ${#ARGUMENTS[@]} -gt 0 ] && [[ ${ARGUMENTS[0]} != [-/]* ]]; then ARGUMENTS[0]=$PWD/${ARGUMENTS[0]}; fi
cd "$(dirname "$0")/.."
if [ "$SETUP" = 1 ]; then
    if EXTRA_REQUIREMENTS=requirements-dev.txt bash scripts/setup.sh; then
        PYTHON=${HSD_VENV:-.venv}/bin/python
    else
        echo "scripts/setup.sh failed; going on with $PYTHON"
    fi
fi
exec "$PYTHON" -m eval.measure.gpu_check ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
