# One virtual environment, installed once and again only when the lists change. The other scripts source this file.
#
#   bash scripts/setup.sh              set it up and do nothing else
#   source scripts/setup.sh            afterwards $PYTHON_VENV is the environment's interpreter
#
# EXTRA_REQUIREMENTS names further lists beside requirements.txt.
# HSD_VENV names the environment (default .venv); PYTHON the interpreter that creates it (default python3). Where that
# interpreter already has a torch that sees a GPU, the environment uses it instead of the pinned CPU build.
# A stamp in the environment holds the checksum of the lists: with an unchanged stamp nothing is installed and the
# network is not touched.
set -euo pipefail

# `--help` as the first argument of any script that sources this file: print that script's header.
case ${1:-} in -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"; exit ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
HSD_VENV=${HSD_VENV:-.venv}
PYTHON_VENV=$HSD_VENV/bin/python
read -ra LISTS <<< "requirements.txt ${EXTRA_REQUIREMENTS:-}"
STAMP=$HSD_VENV/installed-$(cat "${LISTS[@]}" | sha256sum | cut -d' ' -f1)

if [ ! -f "$STAMP" ]; then
    SKIP='^#' SHARE=()
    if "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        SKIP='^#|^torch==' SHARE=(--system-site-packages)
    fi
    [ -x "$PYTHON_VENV" ] || "$PYTHON" -m venv ${SHARE[@]+"${SHARE[@]}"} "$HSD_VENV"
    echo "installing ${LISTS[*]} into $HSD_VENV (once, a few minutes) ..."
    grep -hEv "$SKIP" "${LISTS[@]}" > "$HSD_VENV/requirements.txt"
    "$PYTHON_VENV" -m pip install --quiet --no-compile --disable-pip-version-check -r "$HSD_VENV/requirements.txt"
    # A Python that may not write bytecode would compile torch and transformers anew at every start (twelve seconds).
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || "$PYTHON_VENV" -m compileall -qq -j 0 "$HSD_VENV/lib" || true
    "$PYTHON_VENV" -m eagle.native || true # what is not compiled now is compiled at first use
    touch "$STAMP"
fi
