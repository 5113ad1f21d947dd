"""How good a head is on held-out conversations, without drafting a single tree.

For every draft step s, over the origins of held-out answers: mean sum of min(p, q), which is 1 - TV, the probability
that a token sampled from q is accepted; and how often p and q have the same most likely token. From the same p and q,

    E[accepted of a sampled chain] = sum_s  E[ prod_{j<s} min(1, q_j(x) / p_j(x)) * sum min(p_s, q_s) ]

over texts x drawn from the target: drafting x ~ q and accepting with min(1, p / q) visits prefix x with probability
prod min(p, q) = prod p * min(1, q / p). It is exact in expectation where the answers are the target's own samples
(`eagle.train.data.regenerate`), a proxy on other text, and a proxy of what a tree accepts in any case.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle.modules.head import Eagle3Head
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
    """[steps, 4] sums over origins: valid, sum min(p, q), agreement, probability that this draft token is accepted."""
    survive = torch.ones(where.origins.shape, device=features.device)
    sums, support = [], head.support()
    following = torch.nn.functional.pad(batch.tokens, (0, steps + 2))
    for step, hidden in enumerate(unroll(head, features, batch.tokens, where.origins, steps)):
        rows = where.rows_of_step(step)
        valid = rows >= 0
        tokens = following.gather(1, where.origins + step + 2)[valid]
        found = compare_step(head.logits(hidden[valid]), target.rows(rows[valid]), tokens, support)
        reached = survive[valid]
        per_origin = torch.stack([torch.ones_like(reached), found.accepted, found.agree, reached * found.accepted])
        sums.append(per_origin.sum(1))
        survive = torch.zeros_like(survive).masked_scatter(valid, reached * found.ratio)
    return torch.stack(sums)


@torch.no_grad()
def evaluate(head: Eagle3Head, source: OnlineFeatures, batches: list[Batch], steps: int) -> Report:
    total = torch.zeros(steps, 4)
    for batch in batches:
        where = align(batch.answer)
        features = source(batch)
        probs = source.probs(features.last, where.predicted, head.support())
        total += chain_accepted(head, features.taps, batch, where, probs, steps).cpu()
    count = total[:, 0].clamp(min=1)
    return Report(
        accepted=[round(value, 4) for value in (total[:, 1] / count).tolist()],
        agree=[round(value, 4) for value in (total[:, 2] / count).tolist()],
        chain=round((total[:, 3].sum() / count[0]).item(), 4),
        positions=int(count[0]),
    )
