#!/usr/bin/env bash
# GSM8K by every method on one pair, at temperatures 0 and 1.
#
#   bash scripts/gsm8k.sh [TARGET HEAD] [further arguments for python -m eval]
#   bash scripts/gsm8k.sh --demo        [further arguments]         the embedded pair, on a CPU, offline: on
#                                                                   the 16 bundled problems where $HSD_DATA is not set
#
# what       the 80 questions EAGLE reports on, zero-shot chat (PROTOCOL=paper263 or full for the others)
# default    meta-llama/Llama-3.1-8B-Instruct with yuhuili/EAGLE3-LLaMA3.1-Instruct-8B (directories or hub ids)
# hardware   the official pair: one GPU with 24 GB or more. Several GPUs:
#            LAUNCH=".venv/bin/accelerate launch --num_processes 8 -m"
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# gave       the demo pair on two CPU cores: docs/reproduction.md, section 6. The official pair has not been run
# writes     results/gsm8k-PROTOCOL-tT/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/setup.sh"

PAIR=(meta-llama/Llama-3.1-8B-Instruct yuhuili/EAGLE3-LLaMA3.1-Instruct-8B)
RESULTS=results/gsm8k
case "${1:-}" in
    --demo)
        PAIR=(checkpoints/demo/target checkpoints/demo/eagle3) RESULTS=results/demo-gsm8k
        PROTOCOL=${PROTOCOL:-${HSD_DATA:+eagle80}} PROTOCOL=${PROTOCOL:-sample}
        shift ;;
    ""|--*) ;;
    *) PAIR=("$1" "${2:?expected TARGET HEAD}"); shift 2 ;;
esac
PROTOCOL=${PROTOCOL:-eagle80}

run() {
    ${LAUNCH:-$PYTHON_VENV -m} eval --bench gsm8k --protocol "$PROTOCOL" --seed 0 \
        --base-model-path "${PAIR[0]}" --ea-model-path "${PAIR[1]}" "$@"
}

# at temperature 0 the target law is one-hot: every verifier is the same, and so are the top-k and the hybrid tree
run --temperature 0 --output "$RESULTS-$PROTOCOL-t0" --methods plain transformers topk+token chain+token "$@"
run --temperature 1 --output "$RESULTS-$PROTOCOL-t1" --methods plain transformers topk+token topk+hsd \
    chain+token chain+block chain+hsd multi+token multi+hsd hybrid+token hybrid+hsd "$@"
