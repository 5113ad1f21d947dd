#!/usr/bin/env bash
# The demo pair in checkpoints/demo from nothing: tokenizer, target, its own answers, draft head.
#
#   bash scripts/train_demo.sh DATA_DIR        DATA_DIR holds gsm8k/train.jsonl and flan_cot/*_train.tsv
#
# Hardware: 2 CPU cores with AMX, no GPU.  Time: about 100 minutes.  Result: checkpoints/README.md.
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt
export OMP_WAIT_POLICY=passive
data=$1 work=${WORK:-results/train_demo} demo=checkpoints/demo

"$PYTHON_VENV" -m eagle.train.demo_target "$data" --output "$demo/target" --minutes 60
"$PYTHON_VENV" -m eagle.train.corpus "$data" "$work"
for part in held_out gsm8k; do
    "$PYTHON_VENV" -m eagle.train.regenerate --target "$demo/target" --data "$work/$part.jsonl" \
        --output "$work/$part.own.jsonl" --max-new-tokens 320 --batch 192
done
"$PYTHON_VENV" -m eagle.train --target "$demo/target" --data "$work/gsm8k.own.jsonl" "$work/gsm8k.jsonl" \
    --held-out "$work/held_out.own.jsonl" --output "$work/head" --max-length 640 --minutes 28
mkdir -p "$demo/eagle3"
cp "$work/head/config.json" "$work/head/model.safetensors" "$demo/eagle3/"
