"""Checks of what callers pass in. Shapes and dtypes always; values only on request (a host sync)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hsd.layout import Layout

if TYPE_CHECKING:
    from hsd.tree import DraftTree


def check_tree_shapes(tree: DraftTree) -> None:
    """Raises ValueError naming the field, what was expected, and what was given."""
    if tree.tokens.dim() != 1 or len(tree.tokens) == 0:
        raise ValueError(
            f"tokens is {_describe(tree.tokens)}: expected torch.int64 of shape [N], N >= 1; "
            "tokens[0] is the root, the last committed token"
        )
    for name in ("tokens", "parents", "proposal_rows"):
        _check(getattr(tree, name), name, torch.int64, (len(tree.tokens),))
    if tree.proposals is not None and (tree.proposals.dim() != 2 or not tree.proposals.is_floating_point()):
        raise ValueError(f"proposals is {_describe(tree.proposals)}: expected a floating point tensor [M, V]")
    if tree.layout is not None:
        _check_layout_shape(tree)
    if tree.support is not None:
        if tree.proposals is None:
            raise ValueError("support is given without proposals: pass the laws whose columns it names")
        _check(tree.support, "support", torch.int64, (tree.proposals.shape[1],))


def _check_layout_shape(tree: DraftTree) -> None:
    if tree.layout.end > len(tree):
        raise ValueError(f"layout names node {tree.layout.end - 1}: expected nodes below N = {len(tree)}")
    if tree.layout.max_draws and (tree.proposals is None or len(tree.proposals) == 0):
        raise ValueError(
            "proposals is empty and the layout has sampled children: pass the laws they were "
            "drawn from, or Layout.chosen(depth)"
        )


def _check(value: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(f"{name} is {_describe(value)}: expected {dtype} of shape {list(shape)}")


def _describe(value: Tensor) -> str:
    return f"{value.dtype} of shape {list(value.shape)}"


def check_target_shape(tree: DraftTree, target: Tensor) -> None:
    """target_probs must be Float[N, V], and V the width of proposals where they have no support."""
    if target.dim() != 2 or target.shape[0] != len(tree) or not target.is_floating_point():
        raise ValueError(
            f"target_probs is {_describe(target)}: expected a floating point tensor with one "
            f"row per node, [{len(tree)}, V]"
        )
    if tree.proposals is None or tree.proposals.shape[0] == 0:
        return
    if tree.support is None and tree.proposals.shape[1] != target.shape[1]:
        raise ValueError(
            f"proposals have {tree.proposals.shape[1]} columns, target_probs {target.shape[1]}: "
            "expected the same vocabulary; pass support= for a draft vocabulary"
        )


def check_path(tree: DraftTree, layout: Layout, verifier: str) -> None:
    """Single-path verifiers: node i's parent must be i - 1."""
    if len(tree) != layout.depth + 1:
        raise ValueError(
            f"verifier {verifier!r} takes a single path: {len(tree)} nodes for a depth of "
            f"{layout.depth}; use 'hsd' or 'token' on a tree, Layout.chain(length) for a path"
        )


def check_values(tree: DraftTree, target: Tensor) -> None:
    """Everything that only the numbers can tell. Raises ValueError naming the value, and the remedy."""
    _check_parents(tree.parents)
    _check_range(tree.tokens, "tokens", target.shape[1])
    _check_laws(target, "target_probs", "apply softmax after the warpers, in float32 or better")
    count = 0 if tree.proposals is None else tree.proposals.shape[0]
    _check_range(tree.proposal_rows, "proposal_rows", count, low=-1)
    if tree.proposal_rows[0] >= 0:
        raise ValueError(f"proposal_rows[0] is {int(tree.proposal_rows[0])}: expected -1, the root is not a draft")
    sampled = tree.proposal_rows >= 0
    if tree.layout is not None:
        _check_layout(tree, sampled)
    if bool(sampled.any()):
        _check_drawn(tree, sampled, target.shape[1])


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


def _check_laws(probs: Tensor, name: str, remedy: str) -> None:
    tolerance = 1e-3 if torch.finfo(probs.dtype).bits >= 32 else 2e-2
    total = probs.sum(-1, dtype=torch.promote_types(torch.float32, probs.dtype))
    wrong = ~((probs >= 0).all(-1) & ((total - 1).abs() <= tolerance))  # NaN fails both
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        low = float(probs[row].min())
        fault = f"has the entry {low}" if not low >= 0 else f"sums to {float(total[row]):.6g}"
        raise ValueError(f"{name}[{row}] {fault}: expected non-negative entries that sum to 1; {remedy}")


def _check_layout(tree: DraftTree, sampled: Tensor) -> None:
    actual = Layout.infer(tree.parents.tolist(), sampled.tolist())
    if not tree.layout.covers(actual):
        raise ValueError(
            f"layout {tree.layout} does not cover this tree, which has {actual}: "
            "fix the layout, or leave it out to have it read from the tree"
        )


def _check_drawn(tree: DraftTree, sampled: Tensor, vocabulary: int) -> None:
    used = tree.proposal_rows[sampled]
    _check_laws(tree.proposals[used], "proposals[proposal_rows >= 0]", "keep the law that each token was drawn from")
    support = tree.support
    if support is None:
        support = torch.arange(vocabulary, device=sampled.device)
    _check_range(support, "support", vocabulary)
    if len(support.unique()) != len(support):
        raise ValueError("support has a token id twice: expected distinct columns")
    hit = tree.tokens[:, None] == support
    d = tree.proposals[tree.proposal_rows.clamp(min=0), hit.to(torch.uint8).argmax(1)]
    wrong = sampled & ~((d > 0) & hit.any(1))
    if bool(wrong.any()):
        node = int(wrong.nonzero()[0])
        raise ValueError(
            f"node {node} has the token {int(tree.tokens[node])} and proposal row "
            f"{int(tree.proposal_rows[node])}, which gives it probability 0: a drawn token "
            "needs d_i > 0; pass the law it was drawn from, or -1 if it was chosen"
        )
