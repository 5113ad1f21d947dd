"""From a tree and the target's laws to a decision: find the verifier, compute its law, draw twice.

    verify = one draw of v ~ stop, one draw of the bonus token ~ residual(v)

`decide` has fixed shapes and never waits for the device, so it can be captured in a CUDA graph;
`stopping_law` and `verify` look at values (to check them, and to cut the path to its length).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hsd.checks import check_path, check_target_shape, check_values
from hsd.layout import Layout
from hsd.outcome import Decision, Law, StoppingLaw, Verdict
from hsd.sampling import draw
from hsd.tree import DraftTree
from hsd.verifiers import find_verifier
from hsd.verifiers.balance import Problem


@torch.no_grad()
def stopping_law(tree: DraftTree, target_probs: Tensor, verifier: str = "hsd", check: bool = True) -> StoppingLaw:
    """The exact law of the stopping node.

    target_probs  Float[N, V]  row v: law of the token after node v, after all warpers; float32 or float64 are
                               used as they are, half precision is raised to float32 and renormalised
    verifier      a name in hsd.VERIFIERS
    check         look at the values (needs a host sync)

    Raises ValueError: unknown verifier, wrong shapes, a branching tree for a single-path verifier; with
    `check` also rows that are no laws, tokens out of range, parents out of order, a drawn token with
    d_i = 0.
    """
    problem, law = _solve(tree, target_probs, verifier, check)
    return StoppingLaw(law.stop, law.residual, _expected(problem, law))


@torch.no_grad()
def decide(
    tree: DraftTree,
    target_probs: Tensor,
    verifier: str = "hsd",
    generator: torch.Generator | None = None,
    check: bool = False,
    ancestors: Tensor | None = None,
) -> Decision:
    """Draw the stopping node and the bonus token. Arguments and errors as for `stopping_law`.

    `ancestors` Bool[N, N]: `hsd.ancestors_of(tree.parents)`, where the caller has it already; it is not checked.
    With `tree.layout` given and check=False there is no host synchronisation and every shape is static.
    """
    problem, law = _solve(tree, target_probs, verifier, check, ancestors)
    node = draw(law.stop, generator)
    token = draw(law.residual(node), generator)
    on_path = problem.topo.ancestors.index_select(0, node.reshape(1))[0]
    slots = problem.layout.depth + 1
    place = torch.where(on_path, problem.topo.depth, slots)
    index = torch.arange(len(tree), device=node.device)
    path = index.new_full((slots + 1,), -1).scatter(0, place, index)
    return Decision(path[:slots], on_path.sum() - 1, node, token, _expected(problem, law))


def verify(
    tree: DraftTree,
    target_probs: Tensor,
    verifier: str = "hsd",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Verdict:
    """Which path to keep and what to emit after it.

    Returns path Int64[k+1], node indices from root to stopping node, and token Int64[], the bonus token.
    Arguments and errors as for `stopping_law`; `generator` on the device of `target_probs`, None for the
    global one.
    """
    decision = decide(tree, target_probs, verifier, generator, check)
    return Verdict(decision.path[decision.path >= 0], decision.token)


def _solve(
    tree: DraftTree, target_probs: Tensor, verifier: str, check: bool, ancestors: Tensor | None = None
) -> tuple[Problem, Law]:
    entry = find_verifier(verifier)
    check_target_shape(tree, target_probs)
    if check:
        check_values(tree, target_probs)
    layout = tree.layout or Layout.infer(tree.parents.tolist(), (tree.proposal_rows >= 0).tolist())
    if entry.scope == "path":
        check_path(tree, layout, verifier)
    tree, target = _raise_precision(tree, target_probs)
    problem = Problem(tree, target, layout, ancestors)
    return problem, entry.law(problem)


def _raise_precision(tree: DraftTree, target: Tensor) -> tuple[DraftTree, Tensor]:
    """Bring p and q to one dtype, float32 or float64. Half precision rows are renormalised."""
    proposals = tree.proposals
    dtype = torch.promote_types(torch.float32, target.dtype)
    if proposals is not None:
        dtype = torch.promote_types(dtype, proposals.dtype)
        if proposals.dtype != dtype:
            tree = replace(tree, proposals=_as_laws(proposals, dtype))
    return tree, _as_laws(target, dtype)


def _as_laws(probs: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.finfo(probs.dtype).bits >= 32:
        return probs.to(dtype)
    raised = probs.to(dtype)
    return raised / raised.sum(-1, keepdim=True)


def _expected(problem: Problem, law: Law) -> Tensor:
    return (law.stop * problem.topo.depth).sum()
