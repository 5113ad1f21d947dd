"""The log of a run: log.jsonl, one line per `log_every` steps and one per evaluation, and the progress bar.

Sums since the last line are kept in `window` [unroll + 1, 4]: for every draft step positions, cross-entropy, sum of
min(p, q) and top-1 agreement; in the last row the positions of the batches and their loss. They belong to a
checkpoint, so that a continued run writes the line that an uninterrupted one would have written.
"""

import json
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from eagle import jsonl
from eagle.files import write_whole
from eagle.train.progress import Progress


def finite(value):
    """`value` with numbers that JSON does not have (NaN, infinities) as None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole_rows(path: Path) -> list[dict]:
    """The rows of a log, without a last line cut short. Raises ValueError naming any other line that is no row."""
    rows = []
    for number, row in jsonl.lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path}, line {number}: expected an object with a step; remove the line to continue")
        rows.append(row)
    return rows


class TrainingLog:
    """The log of one run, written by the main process; sums come from all."""

    def __init__(
        self, output: str | Path, unroll: int, accelerator: Accelerator, progress: Progress, total: int | None
    ) -> None:
        """Continue OUTPUT/log.jsonl from `progress`; `total` steps for the bar, where known."""
        self.path = Path(output, "log.jsonl")
        self.accelerator = accelerator
        self.progress = progress
        self.expected: float | None = None  # E[accepted] of the last evaluation
        self.evaluated_at = -1  # its step
        self.window = torch.zeros(unroll + 1, 4, device=accelerator.device)
        if progress.window and accelerator.is_main_process:
            self.window += torch.tensor(progress.window, device=accelerator.device)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.trim()
        # disable=None: shown on a terminal only
        hidden = None if accelerator.is_main_process else True
        self.bar = tqdm(total=total, initial=progress.step, disable=hidden)

    def trim(self) -> None:
        """Drop what was logged after the checkpoint that this run continues from, and a last line cut short."""
        kept = [row for row in whole_rows(self.path) if row["step"] <= self.progress.step]
        for row in kept:
            self.take_evaluation(row)
        if self.accelerator.is_main_process:
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def take_evaluation(self, row: dict) -> None:
        """Remember the last evaluation's step and value, and the best value."""
        if "held_out" in row:
            value = row.get("expected_accepted")
            self.expected, self.evaluated_at = value, row["step"]
            if value is not None:
                self.progress.best = max(self.progress.best, value)

    def write(self, row: dict) -> None:
        """Append a line. Raises OSError naming the file where it cannot be written."""
        self.take_evaluation(row)
        if self.accelerator.is_main_process:
            with jsonl.open_locked(self.path) as file:
                jsonl.append(file, finite(row), self.path)

    def count_positions(self, positions: int) -> None:
        """Positions of a whole batch; every process counts the same ones, so only one of them does."""
        if self.accelerator.is_main_process:
            self.window[-1, 0] += positions

    def count(self, loss: Tensor, sums: Tensor) -> None:
        """This process's part of a batch."""
        self.window[:-1] += sums
        self.window[-1, 1] += loss.detach()

    def total(self) -> Tensor:
        """The window summed over all processes (a collective), on the CPU."""
        return self.accelerator.reduce(self.window, "sum").cpu()

    def write_step(self, seconds: float, lr: float) -> None:
        """One line of training numbers; the window starts again."""
        total = self.total()
        self.window.zero_()
        sums, (positions, loss, _, _) = total[:-1], total[-1].tolist()
        count = sums[:, 0].clamp(min=1)
        row = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "tokens": self.progress.tokens,
            "seconds": round(seconds, 1),
            "lr": lr,
            "loss": loss / max(1, positions),
            "cross_entropy": (sums[:, 1] / count).tolist(),
            "accepted": (sums[:, 2] / count).tolist(),
            "agree": (sums[:, 3] / count).tolist(),
        }
        self.write(row)
        self.bar.set_postfix_str(self.shown(row))

    def shown(self, row: dict) -> str:
        """The bar's text: loss, 1 - TV by draft step, and E[accepted] on held-out prompts."""
        accepted = " ".join(f"{value:.3f}" for value in row["accepted"])
        text = f"loss {row['loss']:.3f}, 1-TV by step {accepted}"
        if self.expected is None:
            return text
        return f"{text}, E[accepted] held out {self.expected:.3f} (best {self.progress.best:.3f})"
