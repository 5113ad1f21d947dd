#!/usr/bin/env bash
# Answer 16 GSM8K-style problems with the demo pair at temperature 1, by five methods, and print one table.
#
#   bash scripts/demo.sh [further arguments for python -m eval, e.g. --num-questions 8]
#
# what       plain decoding; EAGLE-3's top-k tree and the hybrid tree, each verified token-wise and by HSD
# hardware   any CPU; made for 2 cores
# time       installs once (about 100 s and 1.2 GB with a good connection), then starts at once and works offline;
#            2 to 5 minutes of answers, by how busy the machine is
# gave       the table in README.md is the same run on 40 GSM8K test questions
# writes     results/demo/: one JSONL of answers per method, report.html, report.md, report.json, PNG plots
set -euo pipefail
source "$(dirname "$0")/setup.sh"

HF_HUB_OFFLINE=1 "$PYTHON_VENV" -m eval --bench gsm8k --protocol sample --temperature 1 --seed 0 --nodes 16 --depth 6 --fresh \
    --base-model-path checkpoints/demo/target --ea-model-path checkpoints/demo/eagle3 \
    --methods plain topk+token topk+hsd hybrid+token hybrid+hsd --output results/demo "$@"
