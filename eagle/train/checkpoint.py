"""Checkpoints of a training run: whole directories, written under another name and renamed when complete.

    ROOT/step-00000200/    NAME.safetensors, optimizer.pt, state.json

A process killed while saving leaves `.step-*.tmp`, which is never read.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from eagle.files import read_json, write_directory


def directories(root: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(Path(root).glob("step-*"))


def written(path: Path, write: Callable[[], object]) -> None:
    """Run `write`; OSError naming the file where it fails, whichever library raised."""
    try:
        write()
    except Exception as error:  # torch, safetensors and Python report a full disk in three ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{path}: cannot be written ({reason}); the checkpoints before it are kept") from error


def save(
    root: str | Path, step: int, name: str, module: nn.Module, optimizer: Optimizer, state: dict, keep: int
) -> None:
    """Write the checkpoint of this step, unless it is there, and remove all but the last `keep`.

    Raises OSError naming the file that could not be written; complete checkpoints are not touched then.
    """
    path = Path(root, f"step-{step:08d}")
    if path.exists():
        return
    weights = {key: w.detach().cpu().contiguous().clone() for key, w in module.state_dict().items()}

    def fill(directory: Path) -> None:
        file, text = directory / f"{name}.safetensors", json.dumps(state, indent=2)
        written(file, lambda: save_file(weights, file))
        written(directory / "optimizer.pt", lambda: torch.save(optimizer.state_dict(), directory / "optimizer.pt"))
        written(directory / "state.json", lambda: (directory / "state.json").write_text(text))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_directory(path, fill)
    for old in directories(root)[:-keep]:
        shutil.rmtree(old)


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a file of a checkpoint that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"{path}: cannot be read ({reason}); it may be cut short: remove {str(path.parent)!r} to continue from the "
        "checkpoint before it"
    )


def read_json_object(file: Path) -> dict:
    """A JSON object. Raises ValueError naming the file where it holds none."""
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error


def restore(path: Path, name: str, module: nn.Module, optimizer: Optimizer) -> None:
    """Load weights and optimizer state in place. Raises ValueError naming the file that is damaged or does not fit."""
    file = path / f"{name}.safetensors"
    try:
        module.load_state_dict(load_file(file))
    except Exception as error:
        raise damaged(file, error) from error
    file = path / "optimizer.pt"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        (saved,) = saved if isinstance(saved, list) else [saved]  # a list of one until November 2026
        optimizer.load_state_dict(saved)
    except Exception as error:
        raise damaged(file, error) from error
