"""Stop and resume: the whole state of a run in one directory, written under another name and renamed when complete.

    output/checkpoints/step-00000200/    head.safetensors (float32), optimizer.pt, state.json

A directory of that name is whole: a process killed while saving leaves only a `.step-*.tmp`, which is never read.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from eagle.files import write_directory
from eagle.train.config import TrainConfig

# Settings that may differ when a run is continued; everything else would make it another run.
CHANGEABLE = {
    "steps",
    "epochs",
    "minutes",
    "log_every",
    "save_every",
    "keep",
    "accumulation",
    "checkpointing",
    "output",
    "feature_cache",
    "shard_target",
}


@dataclass
class Progress:
    """How far a run is. `window` are sums since the last log line, `best` the best E[accepted] exported."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    tokens: int = 0
    examples: int = 0  # conversations trained on: the plan of batches depends on them
    seconds: float = 0.0
    best: float = -1.0
    window: list = field(default_factory=list)


def directories(output: str | Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(Path(output, "checkpoints").glob("step-*"))


def save(
    output: str | Path, head: nn.Module, optimizers: list[Optimizer], progress: Progress, config: TrainConfig
) -> None:
    """Write the checkpoint of this step and remove all but the last `keep`."""
    path = Path(output, "checkpoints", f"step-{progress.step:08d}")
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)

    def fill(directory: Path) -> None:
        weights = {name: w.detach().cpu().contiguous().clone() for name, w in head.state_dict().items()}
        save_file(weights, directory / "head.safetensors")
        torch.save([optimizer.state_dict() for optimizer in optimizers], directory / "optimizer.pt")
        state = {"progress": asdict(progress), "config": asdict(config)}
        (directory / "state.json").write_text(json.dumps(state, indent=2))

    write_directory(path, fill)
    for old in directories(output)[: -config.keep]:
        shutil.rmtree(old)


def check_same_run(saved: dict, config: TrainConfig, path: Path) -> None:
    now = asdict(config)
    changed = [key for key in saved if key not in CHANGEABLE and key in now and saved[key] != now[key]]
    if changed:
        listed = "; ".join(f"{key}: was {saved[key]!r}, is {now[key]!r}" for key in changed)
        raise ValueError(f"{path} is of a run with other settings ({listed}); choose another output or restore them")


def load_latest(output: str | Path, head: nn.Module, optimizers: list[Optimizer], config: TrainConfig) -> Progress:
    """Restore the newest checkpoint into `head` and `optimizers`; a fresh Progress where there is none.

    Raises ValueError where it is of a run with other settings.
    """
    found = directories(output)
    if not found:
        return Progress()
    path = found[-1]
    state = json.loads((path / "state.json").read_text())
    check_same_run(state["config"], config, path)
    head.load_state_dict(load_file(path / "head.safetensors"))
    states = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    for optimizer, saved in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])
