"""How far a run is, and whether a checkpoint belongs to the run that is about to continue from it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from eagle.checkpoints.fingerprint import fingerprint
from eagle.train import checkpoint
from eagle.train.config import OLD_PRECISIONS, TrainConfig
from eagle.train.data.conversations import Example, digest

# Settings that may differ when a run is continued; with another value of any other it would be another run.
CHANGEABLE = {
    "steps",
    "epochs",
    "minutes",
    "lr",
    "clip",
    "log_every",
    "save_every",
    "keep",
    "accumulation",
    "checkpointing",
    "compile",
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
    data: str = ""  # digest of their token ids and spans
    target: str = ""  # fingerprint of the target's weights
    seconds: float = 0.0
    best: float = -1.0
    window: list = field(default_factory=list)


def checkpoint_root(output: str | Path) -> Path:
    """Where the checkpoints of a run lie."""
    return Path(output, "checkpoints")


def check_same_run(saved: dict, config: TrainConfig, path: Path) -> None:
    """ValueError listing the settings that differ between a checkpoint and the run that would continue from it."""
    now = asdict(config)
    saved = {**saved, "precision": OLD_PRECISIONS.get(saved.get("precision", ""), saved.get("precision"))}
    changed = [key for key in saved if key not in CHANGEABLE and key in now and saved[key] != now[key]]
    if changed:
        listed = "; ".join(f"{key}: was {saved[key]!r}, is {now[key]!r}" for key in changed)
        raise ValueError(f"{path} is of a run with other settings ({listed}); choose another output or restore them")


def weights_of(target: str) -> str:
    """What stands for a target's weights: their fingerprint in a directory, a hub id itself."""
    return fingerprint(target) if Path(target).is_dir() else target


def read_progress(path: Path, config: TrainConfig, examples: list[Example], target: str) -> Progress:
    """The progress that a checkpoint holds. `target` is what `weights_of` gives for the run's.

    Raises ValueError where it is damaged, or of a run with other settings, other data or another target.
    """
    state, known = checkpoint.read_json_object(path / "state.json"), {f.name for f in fields(Progress)}
    saved, settings = state.get("progress"), state.get("config")
    if not isinstance(saved, dict) or not isinstance(settings, dict) or not saved.keys() <= known:
        raise checkpoint.damaged(path / "state.json", ValueError("expected the keys progress and config"))
    check_same_run(settings, config, path)
    progress = Progress(**saved)
    if progress.examples not in (0, len(examples)):
        raise ValueError(
            f"{config.output} was begun with {progress.examples} conversations, now there are {len(examples)}: the "
            "batches would be others; choose another output or restore the data"
        )
    if progress.data not in ("", digest(examples)):
        raise ValueError(
            f"{config.output} was begun with other data: the conversations have changed since {path.name}; choose "
            "another output or restore the data"
        )
    if progress.target not in ("", target):
        raise ValueError(
            f"{config.output} was begun with other weights in {config.target!r}: they have changed since {path.name}; "
            "choose another output or restore the target"
        )
    return progress
