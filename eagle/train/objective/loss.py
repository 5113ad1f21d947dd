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

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.nn.native import calls

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
        """logits [M, V], worked through in blocks on a CPU, natively where that can be."""
        if calls.usable(logits):
            return Totals(*calls.totals(logits))
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


class DraftLoss(NamedTuple):
    """Of M draft distributions. Only `loss`, a sum, carries a gradient."""

    loss: Tensor
    cross_entropy: Tensor  # [M]
    accepted: Tensor  # [M] sum of min(p, q)
    agree: Tensor  # [M] 1 where a most likely token of p is one of q


def loss_rows(
    z: Tensor, target: TargetProbs, rows: Tensor, weight: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits z [m, Vd], rows of p Int64[m], loss weight [m], share a [] -> C, A and agreement [m], dloss/dz.

    Compiled, it reads z and p and writes dloss/dz, and no tensor [m, Vd] in between exists.
    """
    p, mass, weight = target.probs[rows], target.mass[rows, None], weight[:, None]
    log_q = z.float().log_softmax(-1)
    q, full = log_q.exp(), p * mass
    entropy = -(p * log_q).sum(-1)
    accepted = torch.minimum(full, q).sum(-1)
    best = torch.where(p >= p.amax(-1, keepdim=True), q, 0.0).amax(-1)
    agree = (best >= q.amax(-1)).float()
    below = torch.where(q < full, q, 0.0)
    gain = below - q * below.sum(-1, keepdim=True)
    slope = ((1 - share) * (q - p) - share * gain) * weight
    return entropy, accepted, agree, slope.to(z.dtype)


@functools.cache
def fused_loss_rows() -> Callable:
    """`loss_rows`, compiled with the first call."""
    return torch.compile(loss_rows, dynamic=True)


class _DraftLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, rows, scale, share, fused):
        """Returns the loss, and [3, M]: cross-entropy, accepted, agreement."""
        weight, counted = target.weight[rows], torch.as_tensor(share, dtype=torch.float32, device=logits.device)
        weighted = weight * scale
        if fused:
            *found, gradient = fused_loss_rows()(logits, target, rows, weighted, counted)
            parts = torch.stack(found)
        else:
            gradient, parts = torch.empty_like(logits), logits.new_zeros(3, len(logits), dtype=torch.float32)
            size = block_rows(logits)
            for start in range(0, len(logits), size):
                block = slice(start, start + size)
                *found, gradient[block] = loss_rows(logits[block], target, rows[block], weighted[block], counted)
                parts[:, block] = torch.stack(found)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(parts)
        entropy, accepted, _ = parts
        loss = (((1 - share) * entropy + share * (1 - accepted)) * weighted).sum()
        parts[0] *= weight
        parts[2] *= weight
        return loss, parts

    @staticmethod
    def backward(ctx, upstream, _):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


def draft_loss(
    logits: Tensor,
    target: TargetProbs,
    acceptance_weight: float = 0.0,
    rows: Tensor | None = None,
    scale: Tensor | None = None,
    fused: bool = False,
) -> DraftLoss:
    """Draft logits [M, Vd] against the target distributions numbered `rows` Int64[M] (None: all, in order).

    `scale` [M] multiplies the loss of each position (None: 1). `fused`: one compiled pass, see `eagle.train.fusion`.
    """
    rows = torch.arange(len(logits), device=logits.device) if rows is None else rows
    scale = logits.new_ones(len(logits), dtype=torch.float32) if scale is None else scale
    loss, parts = _DraftLoss.apply(logits, target, rows, scale, acceptance_weight, fused)
    return DraftLoss(loss, *parts)
