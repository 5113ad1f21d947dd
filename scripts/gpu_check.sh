#!/usr/bin/env bash
# What a GPU must show: the tests marked gpu, then times. One command after the other, each within its own limit.
#
#   bash scripts/gpu_check.sh OUT [--dry] [PART ...]     parts: tests step eager attention verify equal batch (default: all)
#
# what       OUT/PART.txt has what a part printed, OUT/PART*.json its rows, OUT/summary.txt a line per part as it ends;
#            docs/gpu.md says what each proves. Exit code 1 where a part failed or ran out of time
# hardware   one GPU with 24 GB or more (the shape of Llama-3.1-8B in bfloat16); --dry: any CPU, tiny sizes
# time       8 minutes at most on a GPU (WHOLE=480 seconds); --dry about 2 minutes of processor time
# network    none. PYTHON (default: the environment of scripts/setup.sh, else python3) is used as it is
set -uo pipefail
[ $# -gt 0 ] || { bash "$0" --help >&2; exit 2; }
case ${1:-} in -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"; exit ;; esac
OUT=$1
shift
[ "${1:-}" != --dry ] || { DRY=1 && shift; }
[ $# -gt 0 ] || set -- tests step eager attention verify equal batch
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -n "${DRY:-}" ]; then
    export CUDA_VISIBLE_DEVICES= HSD_GPU_TESTS_ON=cpu
    PATIENCE=6  # times the limits: a machine without a GPU may be busy
    CONTEXTS="80" SHAPE="--shape demo --layers 8 --device cpu --dtype float32 --nodes 9 --depth 3 --steps 2 --rounds 1"
    SHORT=$SHAPE VERIFY="--vocabulary 500 --draft-vocabulary 500 200 --repeats 3" PAIRS="demo" SIZES="1 4"
    ANSWER="--problems 2 --tokens 8 --nodes 9 --depth 3 --dtype float32" EQUAL="--num-questions 1 --max-new-tokens 12 --dtypes float32"
else
    CONTEXTS="512 2048 8192" SHAPE="--shape llama-3.1-8b --device cuda --dtype bfloat16 --nodes 60 --depth 7"
    SHORT="$SHAPE --layers 8" VERIFY="--device cuda --graph" PAIRS="demo smollm2-135m qwen2.5-coder-0.5b" SIZES="1 4 16 64"
    ANSWER="--problems 64 --tokens 64 --nodes 21 --depth 5 --dtype bfloat16" EQUAL="--num-questions 3 --dtypes float32 bfloat16"
fi
FAILED=0 ENDS=$((SECONDS + ${WHOLE:-480} * ${PATIENCE:-1}))

run() {  # PART SECONDS MODULE ARGUMENTS: one command, within its limit
    local part=$1 limit=$(($2 * ${PATIENCE:-1})) began=$SECONDS status=0
    [ $limit -lt $((ENDS - SECONDS)) ] || limit=$((ENDS - SECONDS > 0 ? ENDS - SECONDS : 1))
    timeout --kill-after=5 "$limit" "$PYTHON" -m "${@:3}" >> "$OUT/$part.txt" 2>&1 || status=$?
    [ $status = 0 ] || FAILED=1
    local words=ok
    [ $status = 0 ] || words="FAILED ($status)"
    [ $status != 124 ] || words="stopped after $limit s"
    echo "$part: $words, $((SECONDS - began)) s: ${*:3}" | tee -a "$OUT/summary.txt"
}

part_tests() { run tests 100 pytest -m gpu -q -p no:cacheprovider tests/eagle/engine/test_graphs_gpu.py tests/eval/measure/test_gpu.py; }
part_step() { for C in $CONTEXTS; do run step 45 eval.measure.step_time $SHAPE --context "$C" --output "$OUT/step-$C"; done; }
part_eager() { run eager 45 eval.measure.step_time $SHAPE --no-graphs --context "${CONTEXTS%% *}" --output "$OUT/eager"; }
part_attention() {
    for NAME in sdpa grouped split_prefix; do
        run attention 25 eval.measure.step_time $SHORT --attention $NAME --context "${CONTEXTS##* }" --output "$OUT/attention-$NAME"
    done
    TORCH_CUDNN_SDPA_DEPRIORITIZED=1 run attention 25 eval.measure.step_time $SHORT --attention sdpa \
        --context "${CONTEXTS##* }" --output "$OUT/attention-no-cudnn"
}
part_verify() { run verify 30 eval.measure.verification --no-scalar $VERIFY --output "$OUT/verify.json"; }
part_equal() { for PAIR in $PAIRS; do run equal 30 eval.measure.numerics --pair "$PAIR" $EQUAL --output "$OUT/equal-$PAIR.json"; done; }
part_batch() {
    for PAIR in $PAIRS; do
        run batch 40 eval.measure.batch --pair "$PAIR" --batch $SIZES --repeats 1 $ANSWER \
            --methods plain topk+token hybrid+hsd --output "$OUT/batch-$PAIR.json"
    done
}

for PART in "$@"; do
    "part_$PART"
done
exit $FAILED
