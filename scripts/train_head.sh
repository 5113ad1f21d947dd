#!/usr/bin/env bash
# Train an EAGLE-3 draft head for a target, from messages or ShareGPT JSONL.
#
#   bash scripts/train_head.sh TARGET DATA.jsonl OUTPUT_DIR [--setting value ...]
#
# TARGET is a directory or hub id. The answers are first rewritten by the target itself, a third each at temperature 0,
# 0.6 and 1 (TEMPERATURES="1" for one), then the head is trained on them; both steps continue where they stopped when
# the command is given again. An OUTPUT_DIR whose answers are of other data or another target is refused. Settings are
# those of eagle/train/config.py, e.g. --minutes 40 or --epochs 2 --draft-vocab-size 32000. Prompts that the target
# writes itself: SELF_PROMPTS=2000 EXCLUDE="EVALUATION_FILE ..." bash scripts/train_head.sh ...
# Several GPUs or machines: LAUNCH=".venv/bin/accelerate launch" bash scripts/train_head.sh ...
set -euo pipefail
[ $# -ge 3 ] || [ "${1:-}" = --help ] || { bash "$0" --help >&2; exit 2; }
source "$(dirname "$0")/setup.sh"
target=$1 data=$2 output=$3
shift 3
mkdir -p "$output"
read -ra temperatures <<< "${TEMPERATURES:-0 0.6 1}"
"$PYTHON_VENV" -m eagle.train.regenerate --target "$target" --data "$data" --output "$output/regenerated.jsonl" \
    --temperature "${temperatures[@]}" --self-prompts "${SELF_PROMPTS:-0}" ${EXCLUDE:+--exclude $EXCLUDE}
${LAUNCH:-$PYTHON_VENV} -m eagle.train --target "$target" --data "$output/regenerated.jsonl" --output "$output" \
    --epochs 2 "$@"
