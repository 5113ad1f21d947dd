#!/usr/bin/env bash
# The documentation as a site of static pages: docs/*.md, the changelog and an API reference from the docstrings.
#
#   bash scripts/docs.sh [OUTPUT]     default results/site; open OUTPUT/index.html in a browser
#   bash scripts/docs.sh --serve      at http://127.0.0.1:8000/, built again whenever a page changes; searching needs a server
#
# network    none after the installation, neither to build nor to read: fonts, search and scripts are in the folder
# time       10 seconds
# used by    tests/test_site.py, which builds it with --strict: a link or a name that leads nowhere is an error
set -euo pipefail
EXTRA_REQUIREMENTS=requirements-dev.txt
source "$(dirname "$0")/setup.sh"
export NO_MKDOCS_2_WARNING=1

if [ "${1:-}" = --serve ]; then
    exec "$PYTHON_VENV" -m mkdocs serve
fi
"$PYTHON_VENV" -m mkdocs build --strict --site-dir "${1:-results/site}"
