"""The exact consequences of a verifier in a toy world: the joint distribution it emits, and what it accepts.

One step emits the accepted tokens and the bonus token; the target continues to K + 1 tokens, K
the depth of the drafts. With E(s) the probability that a step emits exactly s, the first K + 1 tokens
z have the distribution

    L(z) = sum over non-empty prefixes s of z of E(s) P(z | s)            lossless:  L = P

and E[accepted] <= sum over s of min(P(s), Pr(s is drafted)): an accepted s must be in the tree, and a
lossless verifier accepts it no more often than the target emits it. For top-k trees this is sum_v p(v).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from hsd.audit.worlds import Draft, Prefix, World
from hsd.tree import DraftTree

Rule = Callable[[DraftTree, Tensor], tuple[Tensor, Tensor]]
"""A verifier under audit: (tree, target_probs Float64[N, V]) -> stop Float[N], residuals Float[N, V]."""


class Outcome(NamedTuple):
    """error: the largest of |L(z) - P(z)| and of the deviations of stop and residuals from distributions.
    variation: total variation distance between L and P.  accepted: E[accepted].
    """

    error: float
    variation: float
    accepted: float


def path_probability(world: World, sequence: Prefix, start: int = 0) -> float:
    """P(sequence[start:] | sequence[:start]) under the target."""
    return math.prod(float(world.target[sequence[:i]][sequence[i]]) for i in range(start, len(sequence)))


def examine(world: World, drafts: list[Draft], rule: Rule) -> Outcome:
    """All drafts, all stops, all bonus tokens."""
    emitted: dict[Prefix, float] = defaultdict(float)
    accepted, fault = 0.0, 0.0
    for draft in drafts:
        stop, residuals = (part.double() for part in rule(draft.tree, draft.target))
        fault = max(fault, _not_distributions(stop, residuals))
        accepted += draft.probability * _emit(draft, stop.tolist(), residuals.tolist(), emitted)
    gaps = [_gap(world, emitted, z) for z in product(range(world.vocabulary), repeat=world.depth + 1)]
    return Outcome(max(fault, max(gaps)), sum(gaps) / 2, accepted)


def _not_distributions(stop: Tensor, residuals: Tensor) -> float:
    """How far stop and the residuals that matter are from distributions; inf for NaN."""
    rows = torch.cat((residuals[stop > 0].reshape(-1), stop.new_zeros(1)))
    sums = torch.cat((residuals[stop > 0].sum(-1), stop.sum()[None]))
    worst = torch.stack(((sums - 1).abs().max(), -rows.min(), -stop.min(), stop.new_zeros(()))).max()
    return float(worst) if worst.isfinite() else math.inf


def _emit(draft: Draft, stop: list[float], residuals: list[list[float]], emitted: dict[Prefix, float]) -> float:
    """Add this draft's emissions; return its E[accepted]."""
    accepted = 0.0
    for prefix, chance, residual in zip(draft.prefixes, stop, residuals):
        accepted += chance * len(prefix)
        if chance != 0:
            for token, r in enumerate(residual):
                emitted[prefix + (token,)] += draft.probability * chance * r
    return accepted


def _gap(world: World, emitted: dict[Prefix, float], z: Prefix) -> float:
    """|L(z) - P(z)|."""
    emitted_z = sum(emitted[z[:i]] * path_probability(world, z, i) for i in range(1, len(z) + 1))
    return abs(emitted_z - path_probability(world, z))


def coverage_bound(world: World, drafts: list[Draft]) -> float:
    """The upper bound on E[accepted] of the module's docstring."""
    drafted: dict[Prefix, float] = defaultdict(float)
    for draft in drafts:
        for prefix in set(draft.prefixes[1:]):
            drafted[prefix] += draft.probability
    return sum(min(chance, path_probability(world, prefix)) for prefix, chance in drafted.items())
