"""One decoding step, for every row of a session at once:

    draft     the drafter reads the tokens committed last and grows a tree from the root
    score     one target forward gives logits and auxiliary hidden states at every node
    verify    the stopping distribution decides the path to keep and the bonus token
    commit    the path's keys and values move behind the committed ones; the bonus token is the next root

The host waits for the device once, in `Session.append`. `Session.phase` may replay a phase instead of running it.

Shapes: B batch, N nodes, K depth, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import hsd
from eagle.engine.records import StepRecord
from eagle.nn.target import Scores
from eagle.trees import TreeBatch, root_only

if TYPE_CHECKING:
    from eagle.engine.session import Session


@torch.inference_mode()
def step(s: "Session", tree: TreeBatch | None = None) -> list[StepRecord]:
    """`tree`: verify this one, drafted at the session's present state, instead of drafting."""
    s.begin_step(recordable=tree is None)
    drafted, replaced = s.phase("draft", lambda: draft(s) if tree is None else (tree, s.none_replaced()))
    scores = s.phase("score", lambda: score(s, drafted))
    probs, kept = s.phase("verify", lambda: verify(s, drafted, scores.logits))
    packed = s.phase("commit", lambda: commit(s, drafted, scores, probs, kept, replaced))
    return s.append(packed, drafted.tokens.shape[1])


def draft(s: "Session") -> tuple[TreeBatch, Tensor]:
    """Grow one tree per row from its root; Bool[B], whether a draft distribution of the row was not finite."""
    if s.plan.builder is None:
        return root_only(s.root), s.none_replaced()
    found = s.open_draft()
    return s.plan.builder.build(found, s.plan.settings), found.replaced()


def score(s: "Session", tree: TreeBatch) -> Scores:
    """Target logits [B, N, V] and auxiliary hidden states [B, N, A] at every node, in one forward."""
    return s.target.score_tree(tree.tokens, tree.depths, tree.ancestors())


def verify(s: "Session", tree: TreeBatch, logits: Tensor) -> tuple[Tensor, hsd.Decision]:
    """p at every node Float[B, N, V], and the path and bonus token drawn from the exact stopping distribution."""
    probs = s.target_probs(logits.to(tree.tokens.device), tree)
    if tree.tokens.shape[1] == 1:
        kept = hsd.Decision.at_root(hsd.draw(probs[:, 0], s.uniforms[:, 1]))
    else:
        kept = hsd.decide(tree, probs, s.plan.verifier, s.uniforms[:, : hsd.DRAWS])
    s.keep_trees(tree, logits, probs, kept)
    return probs, kept


def commit(
    s: "Session", tree: TreeBatch, scores: Scores, probs: Tensor, kept: hsd.Decision, replaced: Tensor
) -> Tensor:
    """Keep the accepted path in the cache, its tokens and auxiliary hidden states for the next draft.

    Returns all that the host reads of the step, Float64[B, 4 + K+1]: accepted, E[accepted], whether p was finite,
    whether a q was replaced, the emitted tokens.
    """
    path, counts, tokens = kept.path.clamp(min=0), kept.accepted + 1, kept.emitted(tree.tokens)
    s.target.commit(path, counts)
    s.store_pending(tokens, counts, scores.aux_states, path)
    finite = probs[..., 0].isfinite().all(1)  # a position without a distribution is NaN everywhere
    columns = (kept.accepted, kept.expected_accepted, finite, replaced.to(finite.device))
    return torch.cat([torch.stack([column.double() for column in columns], 1), tokens], 1)
