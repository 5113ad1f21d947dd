#!/usr/bin/env bash
# MT-Bench (80 questions of two turns) by every method on one pair, at temperatures 0 and 1 and as the model's card
# recommends.
#
#   bash scripts/mt_bench.sh --pair NAME   [further arguments for python -m eval]   smollm2-135m, qwen2.5-coder-0.5b, ...
#   bash scripts/mt_bench.sh TARGET HEAD   [further arguments]                      directories or hub ids
#   bash scripts/mt_bench.sh --demo        [further arguments]                      the embedded pair
#
# what       speed and acceptance, by category. Quality is for FastChat's judge, which reads OUTPUT/model_answer/.
#            METHODS="plain multi+token multi+hsd" for other methods
# default    meta-llama/Llama-3.1-8B-Instruct with yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, EAGLE-3's 60 nodes
# hardware   --pair and --demo: two CPU cores, with the faster dtype and a tree of 16 nodes. The official pair: one GPU
#            with 24 GB or more. Several GPUs: LAUNCH=".venv/bin/accelerate launch --num_processes 8 -m"
# data       $HSD_DATA, else downloaded and checked (python -m eval.questions.downloads)
# gave       docs/reproduction.md. The official pair has not been run
# writes     results/[NAME-]mt_bench-{t0,t1,card}/; running it again continues where it stopped
set -euo pipefail
source "$(dirname "$0")/pair.sh"

run_all "results/${NAME:+$NAME-}mt_bench" --bench mt_bench
