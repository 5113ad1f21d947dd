"""Whether small operations can be fused by torch.compile on this machine."""

import importlib.util
import os
import shutil

import torch

WORTH = 4096  # logits of a position from which compiling the loss pays: it takes 15 seconds


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can work for `device`: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def is_fused(setting: str, device: torch.device, vocabulary: int) -> bool:
    """Whether to compile the loss: `setting` on, off, or auto (a compiler is there and `vocabulary` is large).

    Raises ValueError where it is asked for and cannot be done.
    """
    if setting == "on" and not has_compiler(device):
        raise ValueError(
            "compile is 'on'; expected a C++ compiler (CXX or g++), or Triton on a GPU: install one, or give "
            "--compile off"
        )
    return setting == "on" or (setting == "auto" and vocabulary > WORTH and has_compiler(device))
