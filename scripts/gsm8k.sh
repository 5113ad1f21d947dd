#!/usr/bin/env bash
# GSM8K by every method on one pair, at temperatures 0 and 1.
#
#   bash scripts/gsm8k.sh --pair NAME   [further arguments for python -m eval]      smollm2-135m, qwen2.5-coder-0.5b, ...
#   bash scripts/gsm8k.sh TARGET HEAD   [further arguments]                         directories or hub ids
#   bash scripts/gsm8k.sh --demo        [further arguments]                         the embedded pair, offline
#
# what       the 80 questions EAGLE reports on, zero-shot chat (PROTOCOL=paper263 or full for the others; the 16 bundled
#            problems for the demo pair where $HSD_DATA is not set). METHODS="plain multi+token multi+hsd" for others
# default    meta-llama/Llama-3.1-8B-Instruct with yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, EAGLE-3's 60 nodes
# hardware   --pair and --demo: two CPU cores, with the faster dtype and a tree of 16 nodes. The official pair: one GPU
#            with 24 GB or more. Several GPUs: LAUNCH=".venv/bin/accelerate launch --num_processes 8 -m"
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# gave       docs/reproduction.md. The official pair has not been run
# writes     results/[NAME-]gsm8k-PROTOCOL-tT/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/setup.sh"

SMALL=(--nodes 16 --depth 6) NAME=
case "${1:-}" in
    --pair) NAME=${2:?expected --pair NAME}; shift 2 ;;
    --demo) NAME=demo PROTOCOL=${PROTOCOL:-${HSD_DATA:+eagle80}} PROTOCOL=${PROTOCOL:-sample}; shift ;;
    ""|--*) PAIR=(--base-model-path meta-llama/Llama-3.1-8B-Instruct --ea-model-path yuhuili/EAGLE3-LLaMA3.1-Instruct-8B) ;;
    *) PAIR=(--base-model-path "$1" --ea-model-path "${2:?expected TARGET HEAD}"); shift 2 ;;
esac
case "$NAME" in
    "") ;;
    llama-3.1-8b) PAIR=(--pair "$NAME") ;;
    *) PAIR=(--pair "$NAME" --dtype auto "${SMALL[@]}") ;;
esac
[ -z "$NAME" ] || "$PYTHON_VENV" -m eagle.checkpoints.fetch "$NAME"
PROTOCOL=${PROTOCOL:-eagle80}
RESULTS=results/${NAME:+$NAME-}gsm8k-$PROTOCOL

run() { ${LAUNCH:-$PYTHON_VENV -m} eval --bench gsm8k --protocol "$PROTOCOL" --seed 0 "${PAIR[@]}" "$@"; }

# at temperature 0 the target distribution is one-hot: every verifier accepts the same, and hybrid trees are top-k trees
run --temperature 0 --output "$RESULTS-t0" \
    --methods ${METHODS:-plain transformers transformers-lookup topk+token chain+token} "$@"
run --temperature 1 --output "$RESULTS-t1" \
    --methods ${METHODS:-plain transformers transformers-lookup topk+token topk+hsd chain+hsd hybrid+token hybrid+hsd} "$@"
