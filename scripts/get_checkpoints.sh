#!/usr/bin/env bash
# Download an official target and its EAGLE-3 head into checkpoints/.
#
#   bash scripts/get_checkpoints.sh [TARGET_REPO HEAD_REPO]
#
# default    meta-llama/Llama-3.1-8B-Instruct (gated: `hf auth login` first) and yuhuili/EAGLE3-LLaMA3.1-Instruct-8B
# revisions  TARGET_REVISION and HEAD_REVISION, a commit hash each. Their default is `main`, which can move: the hash
#            that was resolved is written to checkpoints/revisions.lock. To pin a pair, pass the hashes from there.
# space      about 17 GB for the default pair
# used by    bash scripts/gsm8k.sh checkpoints/TARGET_NAME checkpoints/HEAD_NAME
set -euo pipefail
source "$(dirname "$0")/setup.sh"

TARGET=${1:-meta-llama/Llama-3.1-8B-Instruct}
HEAD=${2:-yuhuili/EAGLE3-LLaMA3.1-Instruct-8B}

fetch() {
    local hash
    hash=$("$PYTHON_VENV" -c 'import sys, huggingface_hub as hub; print(hub.HfApi().model_info(sys.argv[1], revision=sys.argv[2]).sha)' "$1" "$2")
    "$HSD_VENV/bin/hf" download "$1" --revision "$hash" --local-dir "checkpoints/${1##*/}" --exclude "original/*"
    echo "$1 $hash" | tee -a checkpoints/revisions.lock
}

fetch "$TARGET" "${TARGET_REVISION:-main}"
fetch "$HEAD" "${HEAD_REVISION:-main}"
