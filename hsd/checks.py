"""Checks of target_probs and of the values in a tree. Shapes always; values on request (a host sync).

rows of target_probs and proposals >= 0 and sum to 1,   0 <= parents[i] < i,   d_i(x_i) > 0 for sampled tokens
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.layout import Layout
from hsd.tree import DraftTree, TreeBatch, describe


def check_target_shape(tree: DraftTree | TreeBatch, target: Tensor) -> None:
    """target_probs must be Float[(B,) N, V], and V the width of proposals where they have no support."""
    shape = tree.tokens.shape
    if target.dim() != len(shape) + 1 or target.shape[:-1] != shape or not target.is_floating_point():
        raise ValueError(
            f"target_probs is {describe(target)}: expected a floating point tensor with one "
            f"row per node, [{', '.join(map(str, shape))}, V]"
        )
    if tree.proposals is None or tree.proposals.shape[-2] == 0:
        return
    if tree.support is None and tree.proposals.shape[-1] != target.shape[-1]:
        raise ValueError(
            f"proposals have {tree.proposals.shape[-1]} columns, target_probs {target.shape[-1]}: "
            "expected the same vocabulary; pass support= for a draft vocabulary"
        )


def check_path(batch: TreeBatch, verifier: str) -> None:
    """Single-path verifiers: node i's parent must be i - 1."""
    nodes, depth = batch.tokens.shape[1], batch.layout.depth
    if nodes != depth + 1:
        raise ValueError(
            f"verifier {verifier!r} takes a single path: {nodes} nodes for a depth of "
            f"{depth}; use 'hsd' or 'token' on a tree, Layout.chain(length) for a path"
        )


def check_batch_values(batch: TreeBatch, target: Tensor) -> None:
    """`check_values` of every row, and the depths. Raises ValueError naming the row."""
    for row, probs in enumerate(target):
        try:
            check_values(batch.row(row), probs)
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
    depths = batch.ancestors().sum(-1) - 1
    wrong = batch.depths != depths
    if bool(wrong.any()):
        row, node = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"row {row}: depths[{node}] is {int(batch.depths[row, node])}: expected {int(depths[row, node])}, "
            "the number of steps up to the root (and at most layout.depth)"
        )


def check_values(tree: DraftTree, target: Tensor) -> None:
    """Check the values of one tree. Raises ValueError naming the value, what was expected and the remedy."""
    _check_parents(tree.parents)
    _check_range(tree.tokens, "tokens", target.shape[1])
    _check_probs(target, "target_probs", "apply softmax after the warpers, in float32 or better")
    count = 0 if tree.proposals is None else tree.proposals.shape[0]
    _check_range(tree.proposal_rows, "proposal_rows", count, low=-2)
    if tree.proposal_rows[0] >= 0:
        raise ValueError(f"proposal_rows[0] is {int(tree.proposal_rows[0])}: expected -1, the root is not a draft")
    sampled = tree.proposal_rows >= 0
    if tree.layout is not None:
        _check_layout(tree, tree.layout, sampled)
    if tree.proposals is not None and bool(sampled.any()):
        _check_sampled(tree, tree.proposals, sampled, target.shape[1])


def _check_parents(parents: Tensor) -> None:
    index = torch.arange(len(parents), device=parents.device)
    if parents[0] != -1:
        raise ValueError(f"parents[0] is {int(parents[0])}: expected -1, node 0 is the root")
    wrong = ((parents < 0) | (parents >= index)) & (index > 0)
    if bool(wrong.any()):
        node = int(wrong.nonzero()[0])
        raise ValueError(
            f"parents[{node}] is {int(parents[node])}: expected 0 <= parents[i] < i; put every node after its parent"
        )


def _check_range(values: Tensor, name: str, stop: int, low: int = 0) -> None:
    wrong = (values < low) | (values >= stop)
    if bool(wrong.any()):
        node = int(wrong.nonzero()[0])
        raise ValueError(f"{name}[{node}] is {int(values[node])}: expected {low} <= value < {stop}")


def _check_probs(probs: Tensor, name: str, remedy: str) -> None:
    tolerance = 1e-3 if torch.finfo(probs.dtype).bits >= 32 else 2e-2
    total = probs.sum(-1, dtype=torch.promote_types(torch.float32, probs.dtype))
    wrong = ~((probs >= 0).all(-1) & ((total - 1).abs() <= tolerance))  # NaN fails both
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        low = float(probs[row].min())
        fault = f"has the entry {low}" if not low >= 0 else f"sums to {float(total[row]):.6g}"
        raise ValueError(f"{name}[{row}] {fault}: expected non-negative entries that sum to 1; {remedy}")


def _check_layout(tree: DraftTree, layout: Layout, sampled: Tensor) -> None:
    actual = Layout.infer(tree.parents.tolist(), sampled.tolist())
    if not layout.covers(actual):
        raise ValueError(
            f"layout {layout} does not cover this tree, which has {actual}: "
            "fix the layout, or leave it out to have it read from the tree"
        )


def _check_sampled(tree: DraftTree, proposals: Tensor, sampled: Tensor, vocabulary: int) -> None:
    used = tree.proposal_rows[sampled]
    _check_probs(proposals[used], "proposals[proposal_rows >= 0]", "pass the distribution each token was sampled from")
    support = tree.support
    if support is None:
        support = torch.arange(vocabulary, device=sampled.device)
    _check_range(support, "support", vocabulary)
    if bool((support.sort().values.diff() == 0).any()):
        raise ValueError("support has a token id twice: expected distinct columns")
    hit = tree.tokens[:, None] == support
    d = proposals[tree.proposal_rows.clamp(min=0), hit.to(torch.uint8).argmax(1)]
    wrong = sampled & ~((d > 0) & hit.any(1))
    if bool(wrong.any()):
        node = int(wrong.nonzero()[0])
        raise ValueError(
            f"node {node} has the token {int(tree.tokens[node])} and proposal row "
            f"{int(tree.proposal_rows[node])}, which gives it probability 0: a sampled token "
            "needs d_i > 0; pass the distribution it was sampled from, or -1 if it is a top-k token"
        )
