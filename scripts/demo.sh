#!/usr/bin/env bash
# A real pair, SmolLM2-135M-Instruct with its head, answers a few problems and chat requests by five methods.
#
#   bash scripts/demo.sh [further arguments for python -m eval.demo, e.g. --num-questions 8 or --pair demo]
#
# what       plain decoding; EAGLE-3's top-k tree and the hybrid tree, each verified token-wise and by HSD, at
#            temperature 1; two answers as text, then the tables
# hardware   any CPU; made for 2 cores
# time       installs once (100 to 150 s and 1.2 GB with a good connection), downloads 93 MB once (45 s with the conversion),
#            then works offline; 4 minutes on two AVX2 cores.
#            Where the download fails, or no head of this pair is here, the embedded demo pair runs instead
# writes     results/demo/: one JSONL of answers per method and question set, report.html, report.md, report.json, plots
set -euo pipefail
source "$(dirname "$0")/setup.sh"

"$PYTHON_VENV" -m eval.demo "$@"
