"""What a run writes down: log.jsonl, one line per `log_every` steps and one per evaluation, and the progress bar.

Sums since the last line are kept in `window` [unroll + 1, 4]: for every draft step positions, cross-entropy, sum of
min(p, q) and top-1 agreement; in the last row the positions of the batches and their loss. They belong to a
checkpoint, so that a run that continues writes the line an uninterrupted one would have written.
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from eagle.files import write_text
from eagle.train.checkpoint import Progress


class Records:
    """The log of one run, written by the main process; sums come from all."""

    def __init__(
        self, output: str | Path, unroll: int, accelerator: Accelerator, progress: Progress, total: int | None
    ):
        self.path = Path(output, "log.jsonl")
        self.accelerator = accelerator
        self.progress = progress
        self.expected: float | None = None  # E[accepted] of the last evaluation
        self.window = torch.zeros(unroll + 1, 4, device=accelerator.device)
        if progress.window and accelerator.is_main_process:
            self.window += torch.tensor(progress.window, device=accelerator.device)
        if accelerator.is_main_process:
            self.trim()
        hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
        self.bar = tqdm(total=total, initial=progress.step, disable=hidden)

    def trim(self) -> None:
        """Drop what was logged after the checkpoint that this run continues from, and a last line cut short."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
            kept = [(line, row) for line, row in whole if row["step"] <= self.progress.step]
            write_text(self.path, "".join(line for line, _ in kept))
            for _, row in kept:
                self.expected = row.get("expected_accepted", self.expected)

    def write(self, row: dict) -> None:
        self.expected = row.get("expected_accepted", self.expected)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

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
        """What the bar says of a line: loss, 1 - TV by draft step, and E[accepted] on held-out prompts once known."""
        accepted = " ".join(f"{value:.3f}" for value in row["accepted"])
        text = f"loss {row['loss']:.3f}, 1-TV by step {accepted}"
        if self.expected is None:
            return text
        return f"{text}, E[accepted] held out {self.expected:.3f} (best {self.progress.best:.3f})"
