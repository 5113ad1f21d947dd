"""From trees and target probabilities to a decision: look up the verifier, compute its distribution, draw twice.

    verify = one draw of v ~ stop, one draw of the bonus token ~ residual(v)

`decide` has fixed shapes and no host synchronization, so it can be captured in a CUDA graph; `stopping_law` and
`verify` read values on the host (to check them, and to cut the path to its length).

Shape letters: B batch, N nodes, K depth of the tree, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd import native
from hsd.checks import check_batch_values, check_path, check_target_shape, check_values
from hsd.outcome import Decision, StopDistribution, StoppingLaw, Verdict
from hsd.sampling import draw
from hsd.tree import DraftTree, TreeBatch, describe
from hsd.verifiers import VERIFIERS, Verifier, find_verifier
from hsd.verifiers.inputs import VerifierInput

IN_ONE_CALL = [(VERIFIERS[name].stop_distribution, name) for name in native.RULES]
DRAWS = 2  # uniform numbers of a decision: the stopping node's, the bonus token's


@torch.no_grad()
def stopping_law(
    tree: DraftTree, target_probs: Tensor, verifier: str | Verifier = "hsd", check: bool = True
) -> StoppingLaw:
    """The exact distribution of the stopping node.

    target_probs  Float[N, V]  row v: distribution of the token after node v, after all warpers; float32 or float64
                               are used as they are, half precision is raised to float32 and renormalized
    verifier      a name in hsd.VERIFIERS, or an hsd.Verifier
    check         check the values (needs a host sync)

    Raises ValueError: unknown verifier, wrong shapes, a branching tree for a single-path verifier; with
    `check` also rows that do not sum to 1, tokens out of range, parents out of order, a sampled token with
    d_i = 0.
    """
    batch = _checked(tree, target_probs, verifier, check)
    inputs, distribution = _solve(batch, target_probs[None], verifier)

    def residual(node: int | Tensor) -> Tensor:
        return distribution.residual(torch.as_tensor(node, device=target_probs.device).reshape(1))[0]

    return StoppingLaw(distribution.stop[0], residual, _expected(inputs, distribution)[0])


@torch.no_grad()
def verify(
    tree: DraftTree,
    target_probs: Tensor,
    verifier: str | Verifier = "hsd",
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Verdict:
    """Which path to keep and what to emit after it.

    Returns path Int64[k+1], node indices from root to stopping node, and token Int64[], the bonus token.
    Arguments and errors as for `stopping_law`; `generator` on any device, None for torch's global one.
    """
    device = torch.device("cpu") if generator is None else generator.device
    uniforms = torch.rand(1, DRAWS, dtype=torch.float64, generator=generator, device=device).to(target_probs.device)
    decision = _decide(_checked(tree, target_probs, verifier, check), target_probs[None], verifier, uniforms)
    path = decision.path[0]
    return Verdict(path[path >= 0], decision.token[0])


@torch.no_grad()
def decide(
    batch: TreeBatch,
    target_probs: Tensor,
    verifier: str | Verifier,
    uniforms: Tensor,
    check: bool = False,
) -> Decision:
    """Draw the stopping node and the bonus token of every row.

    target_probs  Float[B, N, V]   as for `stopping_law`, per row
    verifier      a name in hsd.VERIFIERS, or an hsd.Verifier
    uniforms      Float64[B, 2]    numbers in [0, 1) that nothing else was drawn with: for the node, for the bonus token
    check         check the values of every row (needs host syncs)

    With check=False there is no host synchronization, provided the layout's slots are ranges, and every shape is
    static. Raises ValueError as `stopping_law` does.
    """
    check_target_shape(batch, target_probs)
    if uniforms.shape != (len(batch), DRAWS):
        raise ValueError(f"uniforms is {describe(uniforms)}: expected [{len(batch)}, {DRAWS}], a row per tree")
    if check:
        check_batch_values(batch, target_probs)
    return _decide(batch, target_probs, verifier, uniforms)


def _checked(tree: DraftTree, target_probs: Tensor, verifier: str | Verifier, check: bool) -> TreeBatch:
    """The tree as a batch of one."""
    if isinstance(verifier, str):
        find_verifier(verifier)
    check_target_shape(tree, target_probs)
    if check:
        check_values(tree, target_probs)
    return TreeBatch.of_one(tree)


def _decide(batch: TreeBatch, target_probs: Tensor, verifier: str | Verifier, uniforms: Tensor) -> Decision:
    """By native code where it has the rule and reads the numbers, else by tensors."""
    entry, inputs = _prepared(batch, target_probs, verifier)
    rule = next((name for function, name in IN_ONE_CALL if function is entry.stop_distribution), None)
    fields = (batch.tokens, batch.parents, batch.depths, batch.proposal_rows, uniforms)
    given = [field for field in (inputs.proposals, batch.support) if field is not None]
    if rule is not None and native.LIBRARY.reads(inputs.target, *fields, *given):
        return native.decide(batch, inputs.target, inputs.proposals, rule, uniforms)
    return _draw(inputs, entry.stop_distribution(inputs), uniforms)


def _solve(batch: TreeBatch, target_probs: Tensor, verifier: str | Verifier) -> tuple[VerifierInput, StopDistribution]:
    entry, inputs = _prepared(batch, target_probs, verifier)
    return inputs, entry.stop_distribution(inputs)


def _prepared(batch: TreeBatch, target_probs: Tensor, verifier: str | Verifier) -> tuple[Verifier, VerifierInput]:
    entry = find_verifier(verifier) if isinstance(verifier, str) else verifier
    if entry.scope == "path":
        check_path(batch, verifier if isinstance(verifier, str) else entry.stop_distribution.__name__)
    return entry, _in_one_dtype(batch, target_probs)


def _in_one_dtype(batch: TreeBatch, target: Tensor) -> VerifierInput:
    """p and q in the wider of their dtypes, at least float32. Half precision rows are renormalized."""
    proposals = batch.proposals
    dtype = torch.promote_types(torch.float32, target.dtype)
    if proposals is not None:
        dtype = torch.promote_types(dtype, proposals.dtype)
        proposals = _as_probs(proposals, dtype)
    return VerifierInput(batch, _as_probs(target, dtype), proposals)


def _as_probs(probs: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.finfo(probs.dtype).bits >= 32:
        return probs.to(dtype)
    raised = probs.to(dtype)
    return raised / raised.sum(-1, keepdim=True)


def _draw(inputs: VerifierInput, distribution: StopDistribution, uniforms: Tensor) -> Decision:
    """One draw of every row's node, one of its bonus token."""
    topo, slots = inputs.topo, inputs.layout.depth + 1
    node = draw(distribution.stop, uniforms[:, 0])
    token = draw(distribution.residual(node), uniforms[:, 1])
    rows = torch.arange(len(node), device=node.device)
    on_path = topo.ancestors[rows, node]
    place = torch.where(on_path, topo.depth, slots)
    index = torch.arange(place.shape[1], device=node.device).expand_as(place)
    path = index.new_full((len(node), slots + 1), -1).scatter_(1, place, index)
    accepted = topo.depth.gather(1, node[:, None])[:, 0]
    return Decision(path[:, :slots], accepted, token, _expected(inputs, distribution), distribution.stop)


def _expected(inputs: VerifierInput, distribution: StopDistribution) -> Tensor:
    """E[accepted] Float[B]."""
    return (distribution.stop * inputs.topo.depth).sum(-1)
