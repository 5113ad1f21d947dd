#!/usr/bin/env bash
# Download an official pair from the Hugging Face hub into checkpoints/: `python -m eagle.checkpoints.fetch`.
#
#   bash scripts/get_checkpoints.sh [NAME]
#
# default    llama-3.1-8b: meta-llama/Llama-3.1-8B-Instruct (gated: `hf auth login` first) with
#            yuhuili/EAGLE3-LLaMA3.1-Instruct-8B. It has not been run here
# revisions  the commits of the first download are kept in checkpoints/revisions.lock and used ever after; edit the file
#            to move to others
# space      16 GB for the default pair
# used by    bash scripts/gsm8k.sh --pair llama-3.1-8b
set -euo pipefail
source "$(dirname "$0")/setup.sh"

"$PYTHON_VENV" -m eagle.checkpoints.fetch "${1:-llama-3.1-8b}" --source hub
