# The models of a benchmark script, and its runs; sourced with the script's own arguments by gsm8k.sh and mt_bench.sh.
#
#   --pair NAME | --demo | TARGET HEAD | nothing (the official Llama-3.1 pair), then flags for python -m eval
#
# Sets NAME (empty for models given by path) and PAIR, CARD, REST: flags for the models, for the sampling that the
# target's card or generation_config recommends (Qwen's: from memory), and all others. A named pair is fetched.
# `run_all RESULTS flags...` runs the three settings.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

NAME= CARD=() LLAMA=(--temperature 0.6 --top-p 0.9)
case "${1:-}" in
    --pair) NAME=${2:?expected --pair NAME}; shift 2 ;;
    --demo) NAME=demo; shift ;;
    ""|--*) CARD=("${LLAMA[@]}")
        PAIR=(--base-model-path meta-llama/Llama-3.1-8B-Instruct --ea-model-path yuhuili/EAGLE3-LLaMA3.1-Instruct-8B) ;;
    *) PAIR=(--base-model-path "$1" --ea-model-path "${2:?expected TARGET HEAD}"); shift 2 ;;
esac
case "$NAME" in
    "") ;;
    llama-3.1-8b) PAIR=(--pair "$NAME") CARD=("${LLAMA[@]}") ;;
    *) PAIR=(--pair "$NAME" --dtype auto --nodes 16 --depth 6) ;;
esac
case "$NAME" in
    smollm2-*) CARD=(--temperature 0.2 --top-p 0.9) ;;
    qwen2.5-*) CARD=(--temperature 0.7 --top-p 0.8 --sampling-top-k 20 --repetition-penalty 1.1) ;;
esac
REST=("$@")
[ -z "$NAME" ] || "$PYTHON_VENV" -m eagle.checkpoints.fetch "$NAME"

GREEDY="plain transformers transformers-lookup topk+token chain+token auto+hsd"
SAMPLED="plain transformers transformers-lookup topk+token topk+hsd chain+hsd hybrid+token hybrid+hsd auto+hsd"

# run_all RESULTS [flags of python -m eval]: temperature 0 and 1, and the card's sampling where it is known.
# At temperature 0 the target distribution is one-hot: every verifier accepts the same, and hybrid trees are top-k trees.
run_all() {
    local RESULTS=$1; shift
    RUN=("${PAIR[@]}" --seed 0 "$@")
    run_eval --temperature 0 --output "$RESULTS-t0" --methods ${METHODS:-$GREEDY}
    run_eval --temperature 1 --output "$RESULTS-t1" --methods ${METHODS:-$SAMPLED}
    [ "${#CARD[@]}" = 0 ] || run_eval "${CARD[@]}" --output "$RESULTS-card" --methods ${METHODS:-$SAMPLED}
}
run_eval() { ${LAUNCH:-$PYTHON_VENV -m} eval "${RUN[@]}" "$@" "${REST[@]}"; }
