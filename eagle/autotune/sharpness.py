"""How sure a head may be of its tokens: the power of q under which it is right as often as it says.

At every token of the target's own answers the head's q, to the power s and renormalised, is compared with p by the
quadratic loss

    loss(s) = mean of sum over x of q_s(x)^2 - 2 p(x) q_s(x)                  (Brier's score but for a constant)

which is least where q_s is p on average; values of slots are sums of q and q^2, too. A head is trained at the target's
temperature and above, so at low temperatures it says more than it knows: .5 to .7 at temperature 0.5, .9 to 1 at 1. At
every depth of a draft the same s is best. Trees accept most a little above it (docs/hybrid-trees.md), hence

    sharpness = 1 - 2/3 (1 - s)

Shapes: V vocabulary, Vd draft vocabulary.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from eagle.autotune.calibration import Overlap
from eagle.autotune.candidates import is_greedy
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.autotune.prompts import with_generators
from eagle.engine.distributions import SamplingParams
from eagle.trees import TreeSettings

POWERS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
KEPT = 2 / 3  # of the distance from 1


def measure_overlaps(
    model: Any, prompts: Iterable[Sequence[int]], temperature: float, tokens: int, seed: int = 0
) -> tuple[Overlap, ...]:
    """Overlap and loss of every power, means over `tokens` tokens of each prompt's answer; none at temperature 0, and
    none where no prompt leaves room for an answer.
    """
    if is_greedy(temperature):
        return ()
    probe = StateProbe(model, SamplingParams(temperature), TreeLimits(1, 1, 0))
    rows: list[list[tuple[float, float]]] = []
    for prompt, generator in with_generators(model, prompts, seed):
        probe.begin(prompt, tokens + 1, generator)
        while not probe.ended:
            logits = probe.draft_logits
            rows.append(compare(probe.advance(), logits, probe.drafter.support, temperature))
    return tuple(
        Overlap(power, round(fmean(overlap for overlap, _ in found), 4), round(fmean(loss for _, loss in found), 4))
        for power, found in zip(POWERS, zip(*rows))
    )


def compare(p: Tensor, logits: Tensor, support: Tensor | None, temperature: float) -> list[tuple[float, float]]:
    """Sum of min(p, q_s) and the loss at one token, for every power. p Float[V], draft logits [Vd]."""
    p = p if support is None else p[support]
    powers = torch.tensor(POWERS, device=logits.device)[:, None]
    q = (logits.double() * powers / temperature).softmax(-1)  # [powers, Vd]
    overlap = torch.minimum(p.to(q), q).sum(-1)
    loss = q.square().sum(-1) - 2 * (q @ p.to(q))
    return list(zip(overlap.tolist(), loss.tolist()))


def sharpness_of(overlaps: Sequence[Overlap]) -> float:
    """The sharpness that suits a head with these; the default without any."""
    if not overlaps:
        return TreeSettings().sharpness
    best = min(overlaps, key=lambda one: one.loss)
    return round(1 - KEPT * (1 - best.power), 2)
