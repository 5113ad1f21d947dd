#!/usr/bin/env bash
# MT-Bench (80 questions of two turns) by every method on one pair, at temperatures 0 and 1.
#
#   bash scripts/mt_bench.sh [TARGET HEAD] [further arguments for python -m eval]
#   bash scripts/mt_bench.sh --demo        [further arguments]      the embedded pair, on a CPU
#
# what       speed and acceptance, by category. Quality is for FastChat's judge, which reads OUTPUT/model_answer/
# default    meta-llama/Llama-3.1-8B-Instruct with yuhuili/EAGLE3-LLaMA3.1-Instruct-8B (directories or hub ids)
# hardware   the official pair: one GPU with 24 GB or more. Several GPUs:
#            LAUNCH=".venv/bin/accelerate launch --num_processes 8 -m"
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# gave       the demo pair on two CPU cores: docs/reproduction.md, section 6. The official pair has not been run
# writes     results/mt_bench-tT/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/setup.sh"

PAIR=(meta-llama/Llama-3.1-8B-Instruct yuhuili/EAGLE3-LLaMA3.1-Instruct-8B)
RESULTS=results/mt_bench
case "${1:-}" in
    --demo) PAIR=(checkpoints/demo/target checkpoints/demo/eagle3) RESULTS=results/demo-mt_bench; shift ;;
    ""|--*) ;;
    *) PAIR=("$1" "${2:?expected TARGET HEAD}"); shift 2 ;;
esac

run() {
    ${LAUNCH:-$PYTHON_VENV -m} eval --bench mt_bench --seed 0 \
        --base-model-path "${PAIR[0]}" --ea-model-path "${PAIR[1]}" "$@"
}

# at temperature 0 the target law is one-hot: every verifier is the same, and so are the top-k and the hybrid tree
run --temperature 0 --output "$RESULTS-t0" --methods plain transformers topk+token chain+token "$@"
run --temperature 1 --output "$RESULTS-t1" --methods plain transformers topk+token topk+hsd hybrid+token hybrid+hsd "$@"
