#!/usr/bin/env bash
# GSM8K by every method on one pair, at temperatures 0 and 1 and as the model's card recommends.
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
# writes     results/[NAME-]gsm8k-PROTOCOL-{t0,t1,card}/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/pair.sh"

[ "$NAME" != demo ] || [ -n "${HSD_DATA:-}" ] || PROTOCOL=${PROTOCOL:-sample}
PROTOCOL=${PROTOCOL:-eagle80}
run_all "results/${NAME:+$NAME-}gsm8k-$PROTOCOL" --bench gsm8k --protocol "$PROTOCOL"
