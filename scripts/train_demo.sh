#!/usr/bin/env bash
# The demo pair in checkpoints/demo from nothing: tokenizer, target, the target's own answers, draft head.
#
#   bash scripts/train_demo.sh DATA_DIR        DATA_DIR holds gsm8k/train.jsonl and flan_cot/*_train.tsv
#
# hardware   2 CPU cores, no GPU
# time       about 110 minutes: target 60, own answers 11, head 36. Repeating the command goes on where it stopped
# gave       see checkpoints/README.md
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export OMP_WAIT_POLICY=passive
DATA=${1:?expected DATA_DIR} WORK=${WORK:-results/train_demo} DEMO=checkpoints/demo

"$PYTHON_VENV" -m eagle.train.demo_target "$DATA" --output "$DEMO/target" --work "$WORK/target" --minutes 60
"$PYTHON_VENV" -m eagle.train.corpus "$DATA" "$WORK"
shuf --random-source=<(yes) -n 3000 "$WORK/flan_cot.jsonl" > "$WORK/flan_sample.jsonl"

regenerate() { "$PYTHON_VENV" -m eagle.train.regenerate --target "$DEMO/target" --data "$WORK/$1.jsonl" --output "$WORK/$1.own.jsonl" "${@:2}"; }
regenerate held_out --max-new-tokens 320 --batch 187
regenerate flan_sample --max-new-tokens 160 --batch 128 --minutes 4
regenerate gsm8k --max-new-tokens 320 --batch 96 --minutes 7

"$PYTHON_VENV" -m eagle.train --target "$DEMO/target" --output "$WORK/head" --held-out "$WORK/held_out.own.jsonl" \
    --data "$WORK/gsm8k.own.jsonl" "$WORK/flan_sample.own.jsonl" "$WORK/gsm8k.jsonl" \
    --optimizer adamw --lr 2e-3 --decay 0.5 --max-length 640 --batch-tokens 4096 --acceptance-weight 0.5 --minutes 36
mkdir -p "$DEMO/eagle3"
cp "$WORK/head/config.json" "$WORK/head/model.safetensors" "$WORK/head/log.jsonl" "$WORK/head/curves.png" "$DEMO/eagle3/"
