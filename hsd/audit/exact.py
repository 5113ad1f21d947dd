"""The exact consequences of a verifier in a toy world: the joint law it emits, and what it accepts.

One step emits the accepted tokens and the bonus token; the target's own law continues to `depth` + 1 tokens.
With E(s) the probability that a step emits exactly s, the law of the first depth + 1 tokens z is

    L(z) = sum over prefixes s of z, s not empty, of E(s) * P(z | s)           lossless:  L = P

and  E[accepted] <= sum over s of min(P(s), Pr(s is in the tree)), as an accepted s has to be there and to be wanted.
For chosen trees the right-hand side is sum_v p(v), the target's probability of the drafted paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from hsd.audit.worlds import Draft, Prefix, Recipe, World, drafts
from hsd.types import DraftTree

Rule = Callable[[DraftTree, Tensor], tuple[Tensor, Tensor]]
"""A verifier under audit: (tree, target_probs Float64[N, V]) -> stop Float[N], residuals Float[N, V]."""


class Outcome(NamedTuple):
    """error: largest |L(z) - P(z)|.  variation: total variation distance between L and P.
    accepted: E[accepted].  bound: see the module's docstring."""

    error: float
    variation: float
    accepted: float
    bound: float


def path_probability(world: World, sequence: Prefix, start: int = 0) -> float:
    """P(sequence[start:] | sequence[:start]) under the target."""
    probability = 1.0
    for i in range(start, len(sequence)):
        probability *= float(world.target[sequence[:i]][sequence[i]])
    return probability


def examine(world: World, recipe: Recipe, rule: Rule) -> Outcome:
    """Enumerate all drafts and all stops."""
    emitted: dict[Prefix, float] = defaultdict(float)
    accepted, total = 0.0, 0.0
    present: dict[Prefix, float] = defaultdict(float)
    for draft in drafts(world, recipe):
        total += draft.probability
        accepted += draft.probability * _emit(draft, rule, emitted)
        for prefix in set(draft.prefixes[1:]):
            present[prefix] += draft.probability
    if abs(total - 1) > 1e-9:
        raise RuntimeError(f"the drafts' probabilities sum to {total}: the recipe is not a law")
    bound = sum(min(chance, path_probability(world, prefix)) for prefix, chance in present.items())
    error, variation = _distance(world, emitted)
    return Outcome(error, variation, accepted, bound)


def _emit(draft: Draft, rule: Rule, emitted: dict[Prefix, float]) -> float:
    """Add this draft's emissions; return its E[accepted]."""
    stop, residuals = rule(draft.tree, draft.target)
    accepted = 0.0
    for node, prefix in enumerate(draft.prefixes):
        chance = float(stop[node])
        accepted += chance * len(prefix)
        if chance != 0:
            for token, r in enumerate(residuals[node].tolist()):
                emitted[prefix + (token,)] += draft.probability * chance * r
    return accepted


def _distance(world: World, emitted: dict[Prefix, float]) -> tuple[float, float]:
    error = variation = 0.0
    for sequence in product(range(world.vocabulary), repeat=world.depth + 1):
        law = sum(emitted[sequence[:i]] * path_probability(world, sequence, i) for i in range(1, world.depth + 2))
        gap = abs(law - path_probability(world, sequence))
        error, variation = max(error, gap), variation + gap / 2
    return error, variation


def rows_of(law, count: int) -> tuple[Tensor, Tensor]:
    """(stop, residuals Float[N, V]) of an object with .stop and .residual(node)."""
    return law.stop, torch.stack([law.residual(node) for node in range(count)])
