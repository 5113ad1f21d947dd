"""What is measured on one state's sampled paths: E[accepted] of each verifier, and what the released rule emits.

Shapes: N nodes, K depth, V vocabulary.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.autotune.probe import ScoredTree

AGREE = 1e-6  # block and hsd on one path, in float64


def counted(tree: hsd.DraftTree, stops: frozenset[int]) -> Tensor:
    """Float64[N]: draft tokens kept when verification stops at a node, none behind an end-of-answer token."""
    values, over = [0.0], [False]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:]):
        values.append(values[parent] + (not over[parent]))
        over.append(over[parent] or token in stops)
    return torch.tensor(values, dtype=torch.float64)


def expected(drafted: ScoredTree, verifiers: Iterable[str], stops: frozenset[int]) -> dict[str, float]:
    """E[accepted] of each verifier on one state's tree."""
    depth = counted(drafted.tree, stops)
    found = {name: float((drafted.stopping_law(name).stop.double() * depth).sum()) for name in verifiers}
    if "block" in found and abs(found["block"] - found["hsd"]) > AGREE:
        raise ValueError(f"block and hsd accept {found['block']} and {found['hsd']} on one path: expected the same")
    return found


class Emitted(NamedTuple):
    """What the released rule emits after x_1 .. x_{K-1}, given that these are drafted; see `emitted_at_full_draft`.

    kept       probability w of x_1 .. x_{K-1} being kept under the lossless rule
    mass       the same under the released rule
    distance   total variation between its next token and the target's
    """

    kept: float
    mass: float
    distance: float


def emitted_at_full_draft(target: Tensor, draft_probs: Tensor, tokens: list[int]) -> Emitted:
    """The released rule where the draft is complete, exactly, over all draws of its last token.

    With P, Q the distributions after x_1 .. x_{K-1}, w the capped and R the uncapped product of the ratios so far:

        emitted(x) = min(Q, R P)(x) + (1 - sum min(Q, R P)) h norm(max(w P - Q, 0))(x),   h = S / (S + 1 - w)

    where S = sum max(w P - Q, 0). With w for R this is w P, the lossless rule's.

    target Float[K, V], draft_probs Float[K, V]: p and q at the nodes 0 .. K - 1; tokens: x_1 .. x_{K-1}
    """
    capped = joint = 1.0
    for place, token in enumerate(tokens):
        ratio = float(target[place, token].double() / draft_probs[place, token].double())
        capped, joint = min(1.0, capped * ratio), joint * ratio
    p, q = target[len(tokens)].double(), draft_probs[len(tokens)].double()
    excess = (capped * p - q).clamp(min=0)
    total = float(excess.sum())
    full = torch.minimum(q, joint * p)
    left = (1 - float(full.sum())) / (total + 1 - capped) if total else 0.0
    emitted = full + max(left, 0.0) * excess
    mass = float(emitted.sum())
    return Emitted(capped, mass, float((emitted / mass - p / p.sum()).abs().sum()) / 2)


def released_rule(drafted: ScoredTree) -> list[float]:
    """`emitted_at_full_draft` of a state's path, with q on the target's vocabulary."""
    batch, p = drafted.batch, drafted.target_probs
    assert batch.proposals is not None
    q = batch.proposals[0]
    if batch.support is not None:
        q = torch.zeros_like(p[:-1]).index_copy(1, batch.support, q)
    return [round(value, 6) for value in emitted_at_full_draft(p[:-1], q, batch.tokens[0, 1:-1].tolist())]


def cut(drafted: ScoredTree, before: int, paths: int, depth: int) -> ScoredTree:
    """The first `paths` of `before` sampled paths to `depth`: what the same draws give with these limits."""
    batch = drafted.batch
    nodes = torch.arange(batch.tokens.shape[1])
    level, path = (nodes + before - 1) // before, (nodes - 1) % before
    keep = ((level <= depth) & ((path < paths) | (nodes == 0))).nonzero()[:, 0]
    inner = keep[level[keep] < depth]  # row i of the proposals is node i's
    parents = torch.searchsorted(keep, batch.parents[:, keep].clamp(min=0))  # a first path with a token is kept too
    parents[:, 0] = -1
    assert batch.proposals is not None
    smaller = hsd.TreeBatch(
        batch.tokens[:, keep],
        parents,
        batch.depths[:, keep],
        parents,
        batch.proposals[:, inner],
        batch.support,
        hsd.Layout.infer(parents[0].tolist(), (parents[0] >= 0).tolist()),  # one state's: no node is looked at twice
    )
    return ScoredTree(smaller, drafted.target_probs[keep])


def in_float64(drafted: ScoredTree) -> ScoredTree:
    """p and q in float64, every row renormalized."""
    batch = drafted.batch
    assert batch.proposals is not None
    p, q = drafted.target_probs.double(), batch.proposals.double()
    raised = dataclasses.replace(batch, proposals=q / q.sum(-1, keepdim=True))
    return ScoredTree(raised, p / p.sum(-1, keepdim=True))
