"""The verifiers as the papers state them: Python floats, one accept/reject decision at a time.

Slow on purpose, and independent of hsd/: residuals are normalised at every step, coins are tossed one by
one. A verifier takes `flip(probability) -> bool`, so that one and the same code samples (with a random
flip) and gives its exact distribution (`exact_distribution` plays every sequence of coin outcomes and multiplies their
probabilities).

    hsd    branch-wise, arXiv 2601.05724 on a tree: from the leaves to the root, excess against deficiency
    token  recursive rejection sampling, arXiv 2305.09781: from the root to a leaf
    block  block verification, arXiv 2403.10444: one path, forward scan, the last head wins
    traversal  arXiv 2505.12398: the first leaf of the tree is accepted with p_alpha or deleted, which updates the
               residual and p_alpha of its parent and then p_alpha of all that is left below the parent
    leaves_last  hsd, but the children of a node are visited in another order than they were sampled in: those without
               children of their own come last (docs/verifiers.md)
    published  block, but the full draft is accepted by its uncapped joint ratio, as HSD's released code does
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Flip = Callable[[float], bool]


@dataclass
class Tree:
    """Plain lists. proposals[i] is the distribution that token i was sampled from, None for a top-k token."""

    tokens: list[int]
    parents: list[int]
    proposals: list[list[float] | None]
    target: list[list[float]]

    def children(self, node: int) -> list[int]:
        """In the order in which they are verified."""
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def proposal(self, node: int) -> list[float]:
        """d_i; a point mass for a top-k token."""
        if self.proposals[node] is not None:
            return self.proposals[node]
        return [float(x == self.tokens[node]) for x in range(len(self.target[0]))]


def from_draft(tree, target) -> Tree:
    """From an hsd.DraftTree and target probs Float[N, V]."""
    vocabulary = target.shape[1]
    proposals: list[list[float] | None] = []
    for row in tree.proposal_rows.tolist():
        if row < 0:
            proposals.append(None)
            continue
        d = [0.0] * vocabulary
        columns = range(vocabulary) if tree.support is None else tree.support.tolist()
        for token, q in zip(columns, tree.proposals[row].tolist()):
            d[token] = q
        proposals.append(d)
    return Tree(tree.tokens.tolist(), tree.parents.tolist(), proposals, target.tolist())


def hsd(tree: Tree, flip: Flip) -> tuple[int, list[float]]:
    """The stopping node and the distribution of the bonus token."""
    return _branch(tree, flip, 0, 1.0)


def _branch(tree: Tree, flip: Flip, node: int, w: float) -> tuple[int, list[float]] | None:
    r = tree.target[node]
    for child in tree.children(node):
        d, x = tree.proposal(child), tree.tokens[child]
        kept = _branch(tree, flip, child, min(1.0, w * r[x] / d[x]))
        if kept is not None:
            return kept
        excess = [max(w * a - b, 0.0) for a, b in zip(r, d)]
        deficiency = sum(max(b - w * a, 0.0) for a, b in zip(r, d))
        total = sum(excess)
        w = total / deficiency if total > 0 else 0.0
        r = [e / total for e in excess] if total > 0 else r
    return (node, r) if node == 0 or flip(min(w, 1.0)) else None


def leaves_last(tree: Tree, flip: Flip) -> tuple[int, list[float]]:
    """hsd with every child's probability of being passed, given its siblings' tokens, but with leaves visited last.

    Lossless where it is settled which children are leaves before anything below them is drawn.
    """
    return _leaves_last(tree, flip, 0, 1.0)


def _leaves_last(tree: Tree, flip: Flip, node: int, w: float) -> tuple[int, list[float]] | None:
    r, passed, left = tree.target[node], {}, 1.0
    for child in tree.children(node):
        d, x = tree.proposal(child), tree.tokens[child]
        weight = min(1.0, w * r[x] / d[x])
        passed[child], left = left * weight, left * (1 - weight)
        excess = [max(w * a - b, 0.0) for a, b in zip(r, d)]
        deficiency = sum(max(b - w * a, 0.0) for a, b in zip(r, d))
        total = sum(excess)
        w = total / deficiency if total > 0 and deficiency > 0 else 0.0  # 0 / 0: never left over
        r = [e / total for e in excess] if total > 0 else r
    unvisited = 1.0  # the probability that no child visited so far is passed, given the children's tokens
    for child in sorted(passed, key=lambda child: not tree.children(child)):
        weight = min(1.0, passed[child] / unvisited) if passed[child] > 0 else 0.0
        kept = _leaves_last(tree, flip, child, weight)
        if kept is not None:
            return kept
        unvisited -= passed[child]
    return (node, r) if node == 0 or flip(min(w, 1.0)) else None


def token(tree: Tree, flip: Flip) -> tuple[int, list[float]]:
    """The stopping node and the distribution of the bonus token."""
    node = 0
    while True:
        r = tree.target[node]
        for child in tree.children(node):
            d, x = tree.proposal(child), tree.tokens[child]
            if flip(min(1.0, r[x] / d[x])):
                node = child
                break
            excess = [max(a - b, 0.0) for a, b in zip(r, d)]
            r = [e / sum(excess) for e in excess]
        else:
            return node, r


def block(tree: Tree, flip: Flip, cap_last: bool = True) -> tuple[int, list[float]]:
    """One path: node i is the draft's i-th token."""
    last = len(tree.tokens) - 1
    capped, joint, best, kept = 1.0, 1.0, 0, tree.target[0]
    for i in range(last + 1):
        if i:
            x = tree.tokens[i]
            ratio = tree.target[i - 1][x] / tree.proposal(i)[x]
            capped, joint = min(1.0, capped * ratio), joint * ratio
        if i == last:
            heads, residual = capped if cap_last else min(1.0, joint), tree.target[last]
        else:
            residual = [max(capped * a - b, 0.0) for a, b in zip(tree.target[i], tree.proposal(i + 1))]
            surplus = sum(residual)
            heads = surplus / (surplus + 1 - capped) if surplus > 0 else 0.0
        if i == 0 or flip(heads):
            best, kept = i, residual
    total = sum(kept)
    return best, [a / total for a in kept] if total > 0 else tree.target[best]


def published(tree: Tree, flip: Flip) -> tuple[int, list[float]]:
    """Block verification, but for the full draft, which the joint ratio decides without any cap."""
    return block(tree, flip, cap_last=False)


def traversal(tree: Tree, flip: Flip) -> tuple[int, list[float]]:
    """Traversal verification, one deletion at a time; r and p of a node are the paper's residual target and p_alpha."""
    alive = set(range(len(tree.tokens)))
    r, p = [list(row) for row in tree.target], [1.0] * len(tree.tokens)

    def refresh(node: int) -> None:
        for child in tree.children(node):
            if child in alive:
                x = tree.tokens[child]
                p[child] = min(1.0, p[node] * r[node][x] / tree.proposal(child)[x])
                refresh(child)

    refresh(0)
    while True:
        node = 0
        while below := [child for child in tree.children(node) if child in alive]:
            node = below[0]
        if node == 0 or flip(p[node]):
            return node, r[node]
        alive.remove(node)
        parent, d = tree.parents[node], tree.proposal(node)
        excess = [max(p[parent] * a - b, 0.0) for a, b in zip(r[parent], d)]
        total = sum(excess)
        if total > 0:
            r[parent] = [e / total for e in excess]
            p[parent] = min(1.0, total / (total + 1 - p[parent]))
        else:
            p[parent] = 0.0 / (1 - p[parent])  # nothing left of a certain node: only after a rejection of probability 0
        refresh(parent)


VERIFIERS = {
    "traversal": traversal,
    "hsd": hsd,
    "leaves_last": leaves_last,
    "token": token,
    "block": block,
    "published": published,
}


class _Script:
    """A flip that follows a script of outcomes, then says heads, and multiplies their probabilities."""

    def __init__(self, script: list[bool]) -> None:
        self.script, self.position, self.probability = script, 0, 1.0

    def __call__(self, probability: float) -> bool:
        if self.position == len(self.script):
            self.script.append(probability > 0)
        outcome = self.script[self.position]
        self.position += 1
        self.probability *= probability if outcome else 1 - probability
        return outcome


def exact_distribution(name: str, tree: Tree) -> tuple[list[float], list[list[float] | None]]:
    """stop[v], and the distribution of the bonus token at every v that can be the stop (None elsewhere)."""
    stop: list[float] = [0.0] * len(tree.tokens)
    residuals: list[list[float] | None] = [None] * len(tree.tokens)
    script: list[bool] | None = []
    while script is not None:
        flip = _Script(script)
        node, residual = _play(name, tree, flip)
        if flip.probability > 0:
            stop[node] += flip.probability
            residuals[node] = residual
        script = _next(flip.script)
    return stop, residuals


def _play(name: str, tree: Tree, flip: _Script) -> tuple[int, list[float]]:
    try:
        return VERIFIERS[name](tree, flip)
    except ZeroDivisionError:  # a residual with nothing left: only after a rejection of probability 0
        if flip.probability > 1e-12:
            raise
        flip.probability = 0.0
        return 0, tree.target[0]


def _next(script: list[bool]) -> list[bool] | None:
    """Turn the last heads into tails."""
    while script and not script[-1]:
        script = script[:-1]
    return script[:-1] + [False] if script else None


def sample(name: str, tree: Tree, rng: random.Random) -> tuple[int, int]:
    """One verification as a straightforward implementation does it: the stopping node and the bonus token."""
    node, residual = VERIFIERS[name](tree, lambda probability: rng.random() < probability)
    return node, rng.choices(range(len(residual)), weights=residual)[0]
