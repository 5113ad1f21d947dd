#!/usr/bin/env bash
# The tables of the HSD paper (arXiv 2601.05724): Qwen2.5 targets with the 0.5B model as drafter.
#
#   bash scripts/paper_tables.sh --target NAME --draft NAME [further arguments for python -m eval]
#   bash scripts/paper_tables.sh [further arguments]             the paper's own targets
#
# NAME       of the fetch table (qwen2.5-coder-1.5b, qwen2.5-coder-0.5b: fetched and checked), or a directory or hub id
# what       1. token-wise, block-wise, HSD and the released rule on the same drafts at the same states, exactly:
#            temperatures 1, 0.6, 0.8; draft lengths 5, 10, 15; 4 and 11 paths; 10 tokens behind contexts of 0.5k, 2k and
#            4k tokens (python -m eval.measure.paths)
#            2. GSM8K accuracy of whole answers under every rule, in batches, zero-shot (python -m eval.accuracy)
#            3. answers on the clock, one at a time, transformers' assisted generation beside them
#            GSM8K in 1 and 3: the first questions of the paper's 263, 8-shot; HumanEval. CNN/DM is not among the benchmarks
# how many   QUESTIONS=40 for 1, JUDGED=64 for 2, ANSWERS=4 for 3; raise them and run again: what is there is kept
# dtype      DTYPE=bfloat16 where the CPU multiplies it itself; default: bfloat16 on a GPU, float32 on a CPU
# hardware   1.5B with 0.5B: two CPU cores, 12 GB of memory in float32, hours; a GPU with 24 GB
#            the paper's: GPTQ 8-bit targets (a GPTQ backend for transformers), TARGETS="14B 32B 72B", one H20 (96 GB)
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# gave       docs/reproduction.md, "The paper's tables on a pair of its family"
# writes     results/paper/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/setup.sh"

TARGET= DRAFT=Qwen/Qwen2.5-0.5B-Instruct
[ "${1:-}" != --target ] || { TARGET=${2:?expected --target NAME}; shift 2; }
[ "${1:-}" != --draft ] || { DRAFT=${2:?expected --draft NAME}; shift 2; }
QUESTIONS=${QUESTIONS:-40} JUDGED=${JUDGED:-64} ANSWERS=${ANSWERS:-4}
DTYPE_FLAG=${DTYPE:+--dtype $DTYPE}
SINGLE="plain chain+token chain+block chain+hsd chain+published transformers transformers-assisted"

fetch() { case "$1" in */*) ;; *) "$PYTHON_VENV" -m eagle.checkpoints.fetch "$1" ;; esac; }
states() {
    "$PYTHON_VENV" -m eval.measure.paths --base-model-path "$1" --draft-model-path "$DRAFT" --num-questions "$QUESTIONS" \
        --stride 32 --max-new-tokens 256 --rows 10 --output "$2" $DTYPE_FLAG "${@:3}"
}
answers() {
    ${LAUNCH:-$PYTHON_VENV -m} eval --draft-model-path "$DRAFT" --seed 0 --max-new-tokens 256 --depth 10 \
        --num-questions "$ANSWERS" $DTYPE_FLAG "$@"
}

tables() {
    local OUT=results/paper/${1##*/}
    states "$1" "$OUT/states-gsm8k" --bench gsm8k --protocol paper263 --temperatures 1
    states "$1" "$OUT/states-gsm8k" --bench gsm8k --protocol paper263 --temperatures 0.6 0.8 --depths 10 --paths
    states "$1" "$OUT/states-humaneval" --bench humaneval --temperatures 1
    for SHOTS in 4 12 24; do
        states "$1" "$OUT/states-shots$SHOTS" --bench gsm8k --protocol "shots$SHOTS" --temperatures 1 --depths 10 --paths
    done
    for BENCH in gsm8k humaneval; do
        "$PYTHON_VENV" -m eval.measure.paths_table "$OUT/states-$BENCH"
    done
    "$PYTHON_VENV" -m eval.measure.paths_table "$OUT"/states-shots{4,12,24}
    "$PYTHON_VENV" -m eval.accuracy --bench gsm8k --protocol full --base-model-path "$1" --draft-model-path "$DRAFT" \
        --num-questions "$JUDGED" --nodes 11 --depth 10 --output "$OUT/accuracy" $DTYPE_FLAG \
        --methods plain chain+token chain+block chain+hsd chain+published
    for BENCH in gsm8k:paper263 humaneval:full; do
        answers --bench "${BENCH%:*}" --protocol "${BENCH#*:}" --base-model-path "$1" --total-token 11 --temperature 1 \
            --methods $SINGLE --output "$OUT/${BENCH%:*}" "${@:2}"
    done
    for PATHS in 4 11; do
        answers --bench gsm8k --protocol paper263 --base-model-path "$1" --total-token $((PATHS * 10 + 1)) \
            --temperature 1 --methods multi+token multi+hsd --output "$OUT/gsm8k-$PATHS-paths" "${@:2}"
    done
}

if [ -n "$TARGET" ]; then
    fetch "$TARGET"
    fetch "$DRAFT"
    tables "$TARGET" "$@"
else
    for SIZE in ${TARGETS:-14B 32B 72B}; do
        tables "Qwen/Qwen2.5-$SIZE-Instruct-GPTQ-Int8" "$@"
    done
fi
