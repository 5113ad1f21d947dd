"""One training batch: which origins draft, which target distributions they are compared with, the weighted loss.

Training covers the positions that decoding drafts. The first token of an answer comes from the prompt's own forward;
drafting then starts from origin t with x_{t+1} already an answer token, and never leaves the answer. So p( . | x_<=u )
is needed where u and u + 1 are both the assistant's, and step s of origin t is compared with p at u = t + 1 + s as
long as t + 1 .. u + 1 is one run of answer tokens. For 8 tokens, answers a at 4..7, two steps:

    token        0 1 2 3 4 5 6 7
    answer       . . . . a a a a
    p at u       . . . . u u u .        row of p           4:0  5:1  6:2
    origin t     . . . o o o . .        rows of p at step 0: 0 1 2      at step 1: 1 2 -

Shapes: B batch, n tokens, m origins, M predicted positions, D hidden, F target hidden.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eagle.nn.head import Eagle3Head
from eagle.train.data.conversations import Batch
from eagle.train.objective.loss import TargetProbs, draft_loss
from eagle.train.objective.product import product
from eagle.train.objective.unroll import unroll


class Alignment(NamedTuple):
    """Where p is needed, and by which origins."""

    predicted: Tensor  # Bool[B, n]  its true entries are the rows of p, in reading order
    target_row: Tensor  # Int64[B, n]   number of the row of p, -1 where there is none
    origins: Tensor  # Int64[B, m]   rows with fewer origins are filled with positions that predict nothing

    def rows_of_step(self, step: int) -> Tensor:
        """Int64[B, m]: row of p of every origin at this step, -1 where nothing is predicted."""
        first, last = self.origins + 1, self.target_row.shape[1] - 1
        start = self.target_row.gather(1, first.clamp(max=last))
        row = self.target_row.gather(1, (first + step).clamp(max=last))
        unbroken = (start >= 0) & (row == start + step)  # rows are numbered in reading order: a gap would show
        return torch.where(unbroken & (first + step <= last), row, -1)


def align(answer: Tensor) -> Alignment:
    """answer Bool[B, n] -> the rows of p and the origins that drafting inside these answers needs."""
    predicted = torch.zeros_like(answer)
    predicted[:, 1:-1] = answer[:, 1:-1] & answer[:, 2:]
    target_row = (predicted.flatten().cumsum(0) - 1).view_as(answer).masked_fill(~predicted, -1)
    drafting = predicted.roll(-1, dims=1)  # predicted[:, 0] is false: nothing wraps around
    widest = max(1, int(drafting.sum(1).max()))
    origins = drafting.float().argsort(dim=1, descending=True, stable=True)[:, :widest]
    return Alignment(predicted, target_row, origins)


class Objective(nn.Module):
    """The head with its loss, as one module, so that data-parallel wrappers see a single forward."""

    step_weight: Tensor

    def __init__(
        self,
        head: Eagle3Head,
        steps: int,
        decay: float,
        checkpointing: bool = False,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        """`steps` draft steps with loss weights proportional to decay ** step. `fused`: compile the loss; `compiled`:
        the head's forward.
        """
        super().__init__()
        self.head = head
        self.steps = steps
        self.checkpointing = checkpointing
        self.fused = fused
        powers = torch.tensor([decay**step for step in range(steps)])
        self.register_buffer("step_weight", powers / powers.sum(), persistent=False)
        self.compiled = torch.compile(head.forward, dynamic=True) if compiled else None

    def forward(
        self, features: Tensor, batch: Batch, where: Alignment, target: TargetProbs, acceptance_weight: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over positions, and per-step sums [steps, 4]: positions, cross-entropy, sum of
        min(p, q), top-1 agreement.
        """
        inputs = self.head, features, batch.tokens, where.origins, self.steps, self.checkpointing, self.compiled
        kept, rows = [], []
        for step, hidden in enumerate(unroll(*inputs)):
            row = where.rows_of_step(step)
            valid = row >= 0
            kept.append(hidden[valid])
            rows.append(row[valid])
        counts = [len(row) for row in rows]
        hidden = torch.cat(kept)
        normed = hidden if self.head.config.norm_output else self.head.norm(hidden)
        logits = product(normed, self.head.lm_head.weight)  # one for all steps
        scale = torch.cat([weight.expand(count) for weight, count in zip(self.step_weight, counts, strict=True)])
        out = draft_loss(logits, target, acceptance_weight, torch.cat(rows), scale, self.fused)
        parts = torch.stack([torch.ones_like(scale), *out[1:]])
        return out.loss, torch.stack([part.sum(1) for part in parts.split(counts, dim=1)])
