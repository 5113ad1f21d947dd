"""The loss of the draft distribution, and its gradient.

With p the target distribution, q = softmax(z) the head's over the draft vocabulary D, m = p(D), p' = p / m on D:

    cross-entropy    C = - sum_{x in D} p'(x) log q(x)                  dC/dz = q - p'
    acceptance       A = sum_{x in D} min(p(x), q(x)) = 1 - TV(p, q)    dA/dz = q * (b - sum(b q)),  b = [q < p]
    loss             (1 - a) C + a (1 - A)                              a = `acceptance_weight`

A is the probability that verification at temperature 1 accepts a sampled token. Positions whose most likely target
token lies outside D carry no loss (as published) but count in A. The gradient is written out, a block of rows at a
time: no [M, Vd] tensor of float32 outlives its block.

Shapes: M predicted positions, V target vocabulary, Vd draft vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 512  # of one block on a GPU
CPU_BLOCK = 2**18  # logits of one block on a CPU, within its cache: 64 rows of a 4,096-token vocabulary


def block_rows(logits: Tensor) -> int:
    """Rows of logits [M, Vd] worked through together."""
    return max(1, CPU_BLOCK // logits.shape[-1]) if logits.device.type == "cpu" else ROWS


class TargetProbs(NamedTuple):
    """The target distribution at M positions, restricted to the draft vocabulary."""

    probs: Tensor  # [M, Vd]  p', sums to 1
    mass: Tensor  # [M]     p(D)
    weight: Tensor  # [M]   1, or 0 where the most likely token lies outside D

    def rows(self, index: Tensor) -> "TargetProbs":
        """The distributions numbered `index` Int64[m]."""
        return TargetProbs(*(field[index] for field in self))


class Totals(NamedTuple):
    """What the restriction of M target distributions to a draft vocabulary needs of the tokens outside it."""

    log_sum: Tensor  # Float32[M]  log of the sum of exp(logits) over the full vocabulary
    likeliest: Tensor  # Int64[M]

    @staticmethod
    def of(logits: Tensor) -> "Totals":
        """logits [M, V], worked through in blocks on a CPU."""
        parts = [part.float() for part in logits.split(block_rows(logits))]
        return Totals(torch.cat([part.logsumexp(-1) for part in parts]), torch.cat([part.argmax(-1) for part in parts]))


def target_probs(logits: Tensor, support: Tensor | None) -> TargetProbs:
    """Target logits [M, V] -> their probs on the draft vocabulary (`support` Int64[Vd]; None: the full one)."""
    if support is None:
        ones = logits.new_ones(len(logits), dtype=torch.float32)
        return TargetProbs(logits.float().softmax(-1), ones, ones)
    return restricted_probs(logits[:, support], Totals.of(logits), support)


def restricted_probs(inside: Tensor, totals: Totals, support: Tensor) -> TargetProbs:
    """The same from the logits of the draft vocabulary alone, `inside` [M, Vd], and the totals of all."""
    inside = inside.float()
    mass = (inside.logsumexp(-1) - totals.log_sum).exp().clamp(max=1)
    return TargetProbs(inside.softmax(-1), mass, torch.isin(totals.likeliest, support).float())


class StepLoss(NamedTuple):
    """Sums over the M positions of one unrolled step. Only `loss` carries a gradient."""

    loss: Tensor
    cross_entropy: Tensor
    accepted: Tensor  # [M] sum of min(p, q) at every position
    agree: Tensor  # positions where both have the same most likely token


class _DraftLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, probs, mass, weight, acceptance_weight):
        gradient = torch.empty_like(logits)
        entropy, accepted, agree = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(3))
        size = block_rows(logits)
        for start in range(0, len(logits), size):
            block = slice(start, start + size)
            z, p, w = logits[block].float(), probs[block], weight[block, None]
            log_q = z.log_softmax(-1)
            q, full = log_q.exp(), p * mass[block, None]
            entropy[block] = -(p * log_q).sum(-1) * weight[block]
            accepted[block] = torch.minimum(full, q).sum(-1)
            agree[block] = (q.argmax(-1) == p.argmax(-1)).float() * weight[block]
            slope = (1 - acceptance_weight) * (q - p)
            if acceptance_weight:
                below = (q < full).float()
                slope -= acceptance_weight * q * (below - (below * q).sum(-1, keepdim=True))
            gradient[block] = (slope * w).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, accepted, agree)
        loss = (1 - acceptance_weight) * entropy.sum() + acceptance_weight * ((1 - accepted) * weight).sum()
        return loss, entropy, accepted, agree

    @staticmethod
    def backward(ctx, upstream, *_):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def draft_loss(logits: Tensor, target: TargetProbs, acceptance_weight: float = 0.0) -> StepLoss:
    """Draft logits [M, Vd] against the target distributions at the same positions."""
    loss, entropy, accepted, agree = _DraftLoss.apply(logits, *target, acceptance_weight)
    return StepLoss(loss, entropy.sum(), accepted, agree.sum())
