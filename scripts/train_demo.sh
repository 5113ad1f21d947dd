#!/usr/bin/env bash
# The demo pair in checkpoints/demo from nothing: tokenizer, target, the target's own answers, draft head.
#
#   bash scripts/train_demo.sh DATA_DIR        DATA_DIR holds gsm8k/train.jsonl and flan_cot/*_train.tsv
#
# hardware   2 CPU cores, no GPU
# time       about two and a half hours on two cores without 16-bit arithmetic: target 60 minutes, own answers 35 on one
#            core, head 25 on both and 20 on one. Repeating the command goes on where it stopped
# gave       see checkpoints/README.md; the shipped target was trained by an earlier recipe, with Muon (docs/training.md)
set -euo pipefail
[ $# -ge 1 ] || { bash "$0" --help >&2; exit 2; }
source "$(dirname "$0")/setup.sh"
export OMP_WAIT_POLICY=passive
DATA=$1 WORK=${WORK:-results/train_demo} DEMO=checkpoints/demo

"$PYTHON_VENV" -m eagle.train.demo.target "$DATA" --output "$DEMO/target" --work "$WORK/target" --steps 1000
"$PYTHON_VENV" -m eagle.train.demo.corpus "$DATA" "$WORK"
shuf --random-source=<(yes) -n 1200 "$WORK/flan_cot.jsonl" | cat "$WORK/gsm8k.jsonl" - | shuf --random-source=<(yes) > "$WORK/questions.jsonl"
"$PYTHON_VENV" -m eagle.train.regenerate --target "$DEMO/target" --data "$WORK/questions.jsonl" --output "$WORK/own.jsonl" \
    --temperature 0 0.6 1 --max-new-tokens 256 --batch 128

# three draft steps teach most of what seven do in half the time; the second run adds the others and lets the rate fall
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
HEAD=(-m eagle.train --target "$DEMO/target" --held-out "$WORK/held_out.jsonl" --max-length 640 --batch-tokens 2560 --lr 2e-3)
"$HSD_VENV/bin/torchrun" --nproc_per_node 2 "${HEAD[@]}" --output "$WORK/head-3" --data "$WORK/own.jsonl" "$WORK/gsm8k.jsonl" \
    --unroll 3 --decay 0 --eval-every 500 --eval-prompts 12 --eval-tokens 32 --minutes 25
"$PYTHON_VENV" "${HEAD[@]}" --output "$WORK/head" --data "$WORK/own.jsonl" --init-from "$WORK/head-3/last" \
    --warmup 20 --decay 1 --acceptance-weight 0.5 --eval-every 1000 --minutes 20
mkdir -p "$DEMO/eagle3"
cp "$WORK/head/config.json" "$WORK/head/model.safetensors" "$WORK/head/log.jsonl" "$WORK/head/curves.png" "$DEMO/eagle3/"
