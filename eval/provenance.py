"""Where a number comes from: code, versions, machine, command. Written beside every answer file."""

import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eagle.autotune.machine import processor

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fschat", "accelerate", "numpy")
REPOSITORY = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str | None:
    """Output of a git command in this repository, or None without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it; None where that cannot be found out."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def version(package: str) -> str | None:
    """The installed version, None without the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, threads of this process, GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def portable(text: str) -> str:
    """A path or argument without this machine's directories, so that results can be shown to others."""
    places = {os.environ.get("HSD_DATA"): "$HSD_DATA", str(REPOSITORY): ".", str(Path.home()): "~"}
    for place, name in places.items():
        if place and len(place) > 1:
            whole = rf"(?<![\w./~-]){re.escape(place.rstrip('/'))}(?![\w.-])"  # no part of another directory's name
            text = re.sub(whole, name, text)
    return text


def provenance(argv: list[str] | None = None) -> dict[str, Any]:
    """One session's origin: code, versions, machine, command, start time."""
    return {
        "git": commit(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "hardware": hardware(),
        "platform": platform.platform(),
        "argv": [portable(part) for part in (sys.argv if argv is None else argv)],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
