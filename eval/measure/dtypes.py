"""The faster dtype of this machine for a target: float32 or bfloat16, by plain decoding.

A processor without 16-bit arithmetic converts every weight before it multiplies, so bfloat16 is not faster everywhere.
`python -m eval --dtype auto` measures both before it begins and keeps the choice beside the answers, so that a resumed
run goes on with the dtype that it began with.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eagle.autotune.step_timer import step_seconds
from eagle.engine.plan import Plan
from eagle.files import write_json
from eagle.trees import TreeSettings

CANDIDATES = ("float32", "bfloat16")
TOKENS, REPEATS = 24, 3


def seconds_per_token(engine: Any) -> float:
    """Median seconds of a plain decoding step behind a short random prompt."""
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(engine.target.vocab_size, (64,), generator=random).tolist()
    plan = Plan.resolve("none", "hsd", TreeSettings(), 0.0)
    steps = [one for _ in range(REPEATS) for one in step_seconds(engine, plan, [prompt], 0.0, TOKENS)]
    return statistics.median(sum(one.values()) for one in steps)


def measure(load: Callable[[str], Any]) -> dict[str, float]:
    """Seconds per token of every candidate; `load(dtype)` gives the target as an `eagle.EagleModel`."""
    found = {}
    for name in CANDIDATES:
        engine = load(name)
        found[name] = seconds_per_token(engine)
        del engine  # its memory is free for the next one
    return found


def kept_dtype(path: Path) -> str | None:
    """An earlier choice, None without one. Raises ValueError for a damaged file."""
    if not path.is_file():
        return None
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the choice of an earlier run as JSON; remove the file, or pass --dtype"
        ) from error
    if chosen not in CANDIDATES:
        raise ValueError(f"{path}: chosen is {chosen!r}; expected one of {', '.join(CANDIDATES)}")
    return chosen


def kept_or_measured(path: Path, load: Callable[[str], Any]) -> str:
    """The dtype of an earlier choice in `path`, else the faster one, measured now and written there."""
    kept = kept_dtype(path)
    if kept is None:
        seconds = measure(load)
        kept = min(seconds, key=lambda name: seconds[name])
        write_json(path, {"seconds_per_token": seconds, "chosen": kept})
    return kept
