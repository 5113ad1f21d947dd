#!/usr/bin/env bash
# The settings of the HSD paper's tables (arXiv 2601.05724): Qwen2.5-Instruct targets with the 0.5B model as drafter.
#
#   bash scripts/paper_tables.sh [further arguments for python -m eval]
#
# what       token-wise, block-wise and HSD on one sampled path of 10 tokens; 11 sampled paths for the largest target;
#            temperatures 0.6, 0.8, 1; draft lengths 5, 10, 15. GSM8K: the first 263 questions, 8-shot, 512 new tokens.
#            CNN/DM is not among this project's benchmarks.
# targets    the GPTQ 8-bit checkpoints the paper names, TARGETS="14B 32B 72B" (they need a GPTQ backend for transformers)
# hardware   the paper: one H20 (96 GB). 72B in 8 bit needs about 80 GB
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# writes     results/paper/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/setup.sh"

DRAFT=${DRAFT:-Qwen/Qwen2.5-0.5B-Instruct}
SINGLE="plain chain+token chain+block chain+hsd"
run() { ${LAUNCH:-$PYTHON_VENV -m} eval --draft-model-path "$DRAFT" --seed 0 --max-new-tokens 512 "$@"; }

for SIZE in ${TARGETS:-14B 32B 72B}; do
    TARGET=Qwen/Qwen2.5-$SIZE-Instruct-GPTQ-Int8
    # the main table: three verifiers on one path
    run --bench gsm8k --protocol paper263 --base-model-path "$TARGET" --depth 10 --total-token 11 --temperature 1 \
        --methods $SINGLE --output "results/paper/gsm8k-$SIZE" "$@"
    run --bench humaneval --base-model-path "$TARGET" --depth 10 --total-token 11 --temperature 1 \
        --methods $SINGLE --output "results/paper/humaneval-$SIZE" "$@"
done

TARGET=Qwen/Qwen2.5-72B-Instruct-GPTQ-Int8
# several drafts: 11 independent paths
for BENCH in gsm8k:paper263 humaneval:full; do
    run --bench "${BENCH%:*}" --protocol "${BENCH#*:}" --base-model-path "$TARGET" --depth 10 --total-token 111 \
        --temperature 1 --methods plain multi+token multi+hsd --output "results/paper/multi-${BENCH%:*}" "$@"
done
# by temperature, and by draft length
for TEMPERATURE in 0.6 0.8; do
    run --bench gsm8k --protocol paper263 --base-model-path "$TARGET" --depth 10 --total-token 11 \
        --temperature "$TEMPERATURE" --methods $SINGLE --output "results/paper/gsm8k-72B-t$TEMPERATURE" "$@"
done
for DEPTH in 5 15; do
    run --bench gsm8k --protocol paper263 --base-model-path "$TARGET" --depth "$DEPTH" --total-token $((DEPTH + 1)) \
        --temperature 1 --methods $SINGLE --output "results/paper/gsm8k-72B-depth$DEPTH" "$@"
done
