"""How good a head is on held-out conversations, without drafting a single tree.

For every draft step s, over the origins of held-out answers: mean sum of min(p, q), which is 1 - TV, the probability
that a token sampled from q is accepted; and how often p and q have the same most likely token. From the same p and q,

    E[accepted of a sampled chain] = sum_s  E[ prod_{j<s} min(1, q_j(x) / p_j(x)) * sum min(p_s, q_s) ]

over texts x drawn from the target: drafting x ~ q and accepting with min(1, p / q) visits prefix x with probability
prod min(p, q) = prod p * min(1, q / p). It is exact in expectation where the answers are the target's own samples
(`eagle.train.regenerate`), a proxy on other text, and a proxy of what a tree accepts in any case.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from eagle.nn.head import Eagle3Head
from eagle.train.data.conversations import Batch
from eagle.train.data.features import OnlineFeatures
from eagle.train.objective.alignment import Alignment, align
from eagle.train.objective.loss import TargetProbs
from eagle.train.objective.unroll import unroll


class Report(NamedTuple):
    """Per-step means, and E[accepted] of a sampled chain as deep as the training unrolls."""

    accepted: list[float]
    agree: list[float]
    chain: float
    positions: int


class StepComparison(NamedTuple):
    """One step at the valid origins: sum of min(p, q), ratio q(x) / p(x) of the token that follows, agreement."""

    accepted: Tensor
    ratio: Tensor
    agree: Tensor


def compare_step(logits: Tensor, target: TargetProbs, following: Tensor, support: Tensor | None) -> StepComparison:
    """Draft logits [M, Vd], target probs of the same rows, and the tokens Int64[M] that follow them in the text."""
    q, p = logits.float().softmax(-1), target.probs * target.mass[:, None]
    if support is None:
        column, inside = following, torch.ones_like(following, dtype=torch.bool)
    else:
        column = torch.searchsorted(support, following).clamp(max=len(support) - 1)
        inside = support[column] == following
    pick = column[:, None]
    ratio = (q.gather(1, pick) / p.gather(1, pick).clamp(min=1e-30)).squeeze(1).clamp(max=1) * inside
    return StepComparison(torch.minimum(p, q).sum(-1), ratio, (q.argmax(-1) == p.argmax(-1)).float())


def chain_accepted(
    head: Eagle3Head, features: Tensor, batch: Batch, where: Alignment, target: TargetProbs, steps: int
) -> Tensor:
    """[B, steps, 4] sums over a row's origins: valid, sum min(p, q), agreement, P(this draft token is accepted)."""
    survive = torch.ones(where.origins.shape, device=features.device)
    sums, support = [], head.support()
    following = torch.nn.functional.pad(batch.tokens, (0, steps + 2))
    for step, hidden in enumerate(unroll(head, features, batch.tokens, where.origins, steps)):
        rows = where.rows_of_step(step)
        valid = rows >= 0
        tokens = following.gather(1, where.origins + step + 2)[valid]
        found = compare_step(head.logits(hidden[valid]), target.rows(rows[valid]), tokens, support)
        reached = survive[valid]
        per_origin = torch.stack([torch.ones_like(reached), found.accepted, found.agree, reached * found.accepted], 1)
        per_row = torch.zeros(len(rows), 4, device=features.device)
        sums.append(per_row.index_add(0, valid.nonzero()[:, 0], per_origin))
        survive = torch.zeros_like(survive).masked_scatter(valid, reached * found.ratio)
    return torch.stack(sums, 1)


@torch.no_grad()
def acceptance_sums(head: Eagle3Head, source: OnlineFeatures, batches: Iterable[Batch], steps: int) -> Tensor:
    """The sums of `chain_accepted` for every conversation, [conversations, steps, 4] on the CPU."""
    found = []
    for batch in batches:
        where = align(batch.answer)
        features = source(batch)
        probs = source.probs(features, where.predicted, head.support())
        found.append(chain_accepted(head, features.taps, batch, where, probs, steps).cpu())
    return torch.cat(found)


def report_of(sums: Tensor) -> Report:
    """Means over all origins, of sums [conversations, steps, 4]."""
    total = sums.sum(0)
    count = total[:, 0].clamp(min=1)
    return Report(
        accepted=[round(value, 4) for value in (total[:, 1] / count).tolist()],
        agree=[round(value, 4) for value in (total[:, 2] / count).tolist()],
        chain=round((total[:, 3].sum() / count[0]).item(), 4),
        positions=int(count[0]),
    )


def standard_errors(sums: Tensor) -> list[float]:
    """Of the mean sum of min(p, q) per draft step, over conversations (a ratio of sums); NaN for a single one."""
    count, accepted, n = sums[:, :, 0], sums[:, :, 1], len(sums)
    if n < 2:
        return [float("nan")] * sums.shape[1]
    total = count.sum(0).clamp(min=1)
    deviation = accepted - accepted.sum(0) / total * count
    return ((deviation.square().sum(0) * n / (n - 1)).sqrt() / total).tolist()


def evaluate(head: Eagle3Head, source: OnlineFeatures, batches: Iterable[Batch], steps: int) -> Report:
    """How well q matches p along the answers of `batches`, at each of `steps` draft steps."""
    return report_of(acceptance_sums(head, source, batches, steps))
