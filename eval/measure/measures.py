"""What is measured on one state's sampled draft: E[accepted] of each verifier, and what the released rule emits.

Shapes: N nodes, K depth, V vocabulary.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eval.measure.states import Drafts

AGREE = 1e-6  # block and hsd on one path, in float64


def counted(tree: hsd.DraftTree, stops: frozenset[int]) -> Tensor:
    """Float64[N]: draft tokens kept when verification stops at a node, none behind an end-of-answer token."""
    values, over = [0.0], [False]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:]):
        values.append(values[parent] + (not over[parent]))
        over.append(over[parent] or token in stops)
    return torch.tensor(values, dtype=torch.float64)


def expected(drafts: Drafts, verifiers: Iterable[str], stops: frozenset[int]) -> dict[str, float]:
    """E[accepted] of each verifier on one state's tree."""
    tree, depth = drafts.batch.row(0), counted(drafts.batch.row(0), stops)
    found = {}
    for verifier in verifiers:
        law = hsd.stopping_law(tree, drafts.target_probs[0], verifier, check=False)
        found[verifier] = float((law.stop.double() * depth).sum())
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


def released_rule(drafts: Drafts) -> list[float]:
    """`emitted_at_full_draft` of a state's path, with q on the target's vocabulary."""
    batch, p = drafts.batch, drafts.target_probs[0]
    assert batch.proposals is not None
    q = batch.proposals[0]
    if batch.support is not None:
        q = torch.zeros_like(p[:-1]).index_copy(1, batch.support, q)
    return [round(value, 6) for value in emitted_at_full_draft(p[:-1], q, batch.tokens[0, 1:-1].tolist())]
