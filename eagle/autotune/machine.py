"""What a measured time belongs to, and where measurements of this machine are kept."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """The CPU's name where the system has it, else its architecture."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """What decides how long a computation on `device` takes."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/eagle3-hsd`, by default `~/.cache/eagle3-hsd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagle3-hsd"
