#!/usr/bin/env bash
# A real pair, Qwen2.5-Coder-0.5B-Instruct with its head, answers two problems by three methods.
#
#   bash scripts/demo.sh [further arguments for python -m eval.demo, e.g. --num-questions 8 or --pair demo]
#
# what       plain decoding; EAGLE-3's top-k tree; the hybrid tree, verified by HSD, at temperature 0.7; one question with
#            two answers, then the table
# hardware   any CPU; made for 2 cores. With less than 4 GiB of free memory or disk SmolLM2-135M answers instead
# time       installs once (100 to 150 s and 1.2 GB with a good connection), downloads 478 MB once, then works offline
#            (--pair smollm2-135m: 93 MB). Where the download fails the embedded demo pair runs instead
# writes     results/demo/: one JSONL of answers per method, report.html, report.md, report.json, plots
set -euo pipefail
source "$(dirname "$0")/setup.sh"

"$PYTHON_VENV" -m eval.demo "$@"
