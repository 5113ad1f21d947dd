"""One training batch: which origins draft, which target laws they are compared with, and the weighted loss.

Predicted positions are u with u + 1 an assistant token: there the target's law p( . | x_<=u ) is needed. Step s of
origin t is compared with the law at u = t + 1 + s. For 8 tokens, answers a at 4..7, two steps:

    token        0 1 2 3 4 5 6 7
    answer       . . . . a a a a
    law at u     . . . u u u u .        row of the law     3:0  4:1  5:2  6:3
    origin t     . o o o o o . .        t = 1 has no prediction at step 0 (u = 2), one at step 1 (u = 3)

Shapes: B batch, n tokens, m origins, M predicted positions, D hidden, F target hidden.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eagle.head import Eagle3Head
from eagle.train.data import Batch
from eagle.train.loss import TargetLaw, draft_loss
from eagle.train.unroll import unroll


class Alignment(NamedTuple):
    """Where the laws are, and who needs them."""

    predicted: Tensor  # Bool[B, n]  law rows are its true entries, in reading order
    law_row: Tensor  # Int64[B, n]   number of the law row, -1 where there is none
    origins: Tensor  # Int64[B, m]   rows with fewer origins are filled with positions that need no law

    def rows_of_step(self, step: int) -> Tensor:
        """Int64[B, m]: law row of every origin at this step, -1 where nothing is predicted."""
        at = self.origins + step + 1
        inside = at < self.law_row.shape[1]
        return torch.where(inside, self.law_row.gather(1, at.clamp(max=self.law_row.shape[1] - 1)), -1)


def align(answer: Tensor, steps: int) -> Alignment:
    """answer Bool[B, n] -> which positions the loss needs for `steps` unrolled steps."""
    predicted = torch.zeros_like(answer)
    predicted[:, 1:-1] = answer[:, 2:]
    law_row = (predicted.flatten().cumsum(0) - 1).view_as(answer).masked_fill(~predicted, -1)
    needed = torch.zeros_like(answer)
    for step in range(steps):
        needed[:, : -(step + 1)] |= predicted[:, step + 1 :]
    widest = max(1, int(needed.sum(1).max()))
    origins = needed.float().argsort(dim=1, descending=True, stable=True)[:, :widest]
    return Alignment(predicted, law_row, origins)


class Objective(nn.Module):
    """The head with its loss, as one module, so that data-parallel wrappers see a single forward."""

    def __init__(
        self, head: Eagle3Head, steps: int, decay: float, acceptance_weight: float, checkpointing: bool = False
    ):
        super().__init__()
        self.head = head
        self.steps = steps
        self.acceptance_weight = acceptance_weight
        self.checkpointing = checkpointing
        powers = torch.tensor([decay**step for step in range(steps)])
        self.register_buffer("step_weight", powers / powers.sum(), persistent=False)

    def forward(self, features: Tensor, batch: Batch, where: Alignment, target: TargetLaw) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over positions, and per-step sums [steps, 4]: positions, cross-entropy, sum of
        min(p, q), top-1 agreement."""
        total, sums = features.new_zeros((), dtype=torch.float32), []
        states = unroll(self.head, features, batch.tokens, where.origins, self.steps, self.checkpointing)
        for step, hidden in enumerate(states):
            rows = where.rows_of_step(step)
            valid = rows >= 0
            out = draft_loss(self.head.logits(hidden[valid]), target.rows(rows[valid]), self.acceptance_weight)
            total = total + self.step_weight[step] * out.loss
            sums.append(torch.stack([valid.sum().float(), out.cross_entropy, out.accepted.sum(), out.agree]))
        return total, torch.stack(sums).detach()
