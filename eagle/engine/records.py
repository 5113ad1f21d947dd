"""What a generation leaves: a `GeneratedRow` per sequence, a `StepRecord` per step, a `TreeRecord` of a draft tree.

Shapes: B batch, N nodes, R drafted distributions (of the root and of every node grown below it), V vocabulary, Vd draft
vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.trees import Draft, TreeBatch

ToProbs = Callable[[Tensor], Tensor]


class StepRecord(NamedTuple):
    """What one decoding step did for one row.

    accepted            draft tokens emitted, bonus excluded; nothing past an EOS or the token limit
    emitted             tokens emitted, bonus included
    expected_accepted   E[accepted] of the step's stopping distribution (before any truncation)
    nodes               rows of the target's scoring forward
    truncated           cut by an EOS, a stopping criterion or the token limit
    seconds             wall seconds by phase: draft, score, verify, commit
    """

    accepted: int
    emitted: int
    expected_accepted: float
    nodes: int
    truncated: bool
    seconds: dict[str, float]


class PlanRecord(NamedTuple):
    """How a generation decoded: keywords of `generate` that decode alike, `tree="auto"` and `nodes="auto"` resolved."""

    tree: str
    verifier: str
    nodes: int
    depth: int
    beta: float
    sharpness: float


class TreeRecord(NamedTuple):
    """One step's draft tree and its verification, for one row. Lists have an entry per node; node 0 is the root.

    tokens    token ids
    parents   parents[i] < i; -1 for the root
    sampled   True: sampled from a draft distribution; False: a top-k token (and the root)
    p         the target's probability of the token after its parent; 1 for the root
    q         the drafter's, in full, before top-k tokens are taken out; at temperature 0 without truncation, at
              temperature 1, as the tree is ranked; 1 for the root
    d         what verification divides by: the probability that a sampled token was sampled with, 1 for a top-k token
    stop      probability that the accepted path ends at the node; sums to 1
    path      the accepted path: nodes from the root to the one where verification stopped
    bonus     the token id emitted after it
    """

    tokens: list[int]
    parents: list[int]
    sampled: list[bool]
    p: list[float]
    q: list[float]
    d: list[float]
    stop: list[float]
    path: list[int]
    bonus: int


@dataclass(eq=False)
class GeneratedRow:
    """One sequence, and the handle of a row of a session.

    prompt            token ids without padding
    new_tokens        the generated ones; nothing after an EOS or the token at which a criterion stopped the row
    steps             one record per decoding step; the first new token comes from the prefill and has none
    stop_reason       "eos", "length" (max_new_tokens or max_length), "context" (the target's limit), "criteria"
                      (stop_strings or stopping_criteria); "" while the row grows
    seconds           wall seconds from the start of the generation to the row's last token
    prefill_seconds   those of them spent on the prompt
    reused_tokens     how many of the prompt's tokens were still in the caches (`reuse_cache=True`)
    trees             one draft tree per entry of `steps` with `record_trees=True`, else empty
    plan              what drafted and verified: `generate` with its fields as keywords and the same seed gives the same
                      tokens (None in rows of a session that was made without a model)
    """

    prompt: list[int]
    new_tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    stop_reason: str = ""
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    reused_tokens: int = 0
    trees: list[TreeRecord] = field(default_factory=list)
    plan: PlanRecord | None = None

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt)

    @property
    def finished(self) -> bool:
        """Whether nothing more will be generated."""
        return bool(self.stop_reason)

    @property
    def ids(self) -> list[int]:
        """Prompt and new tokens."""
        return self.prompt + self.new_tokens

    @property
    def length(self) -> int:
        """Number of `ids`."""
        return len(self.prompt) + len(self.new_tokens)


class StepTrees(NamedTuple):
    """References to what one step drafted and decided, to be read on the host after its clock has stopped.

    draft    None where nothing was drafted
    logits   [B, N, V]: the target's, at every node
    probs    Float[B, N, V]: p at every node
    """

    draft: Draft | None
    tree: TreeBatch
    logits: Tensor
    probs: Tensor
    decision: hsd.Decision

    @torch.inference_mode()
    def record(self, row: int, to_probs: ToProbs) -> TreeRecord:
        """One row's tree. `to_probs`: logits [1, R, Vd] of the row -> q. Waits for the device."""
        tree = self._row(row)
        return _record(tree, self.probs[row], self.decision, row, self._draft_probs(tree, row, to_probs))

    def _row(self, row: int) -> hsd.DraftTree:
        """One row's tree without the padding behind it."""
        tree = self.tree.row(row)
        real = int((tree.proposal_rows >= -1).sum())
        parts = (tree.tokens[:real], tree.parents[:real], tree.proposal_rows[:real])
        return hsd.DraftTree(*parts, tree.proposals, tree.support)

    def _draft_probs(self, tree: hsd.DraftTree, row: int, to_probs: ToProbs) -> Tensor:
        """q of every node's token after its parent: Float[N], 1 for the root."""
        found = torch.ones(len(tree), device=tree.tokens.device)
        if len(tree) == 1 or self.draft is None:
            return found
        paths, grown = _paths(tree), self._grown(row)
        q = to_probs(torch.cat([part[row] for part in self.draft.logits])[None])[0].to(found.device)  # [R, Vd]
        q = q.nan_to_num(nan=1 / q.shape[-1])  # replaced by the uniform distribution when it was drafted
        rows = torch.tensor([grown[path[:-1]] for path in paths[1:]], device=found.device)
        columns = _columns(tree.tokens[1:], self.draft.support, q.shape[-1])
        found[1:] = torch.where(columns >= 0, q[rows, columns.clamp(min=0)], 0)
        return found

    def _grown(self, row: int) -> dict[tuple[int, ...], int]:
        """The draft index of every grown path of tokens below the root, () being the root's. Equal paths have equal
        logits.
        """
        assert self.draft is not None
        paths: list[tuple[int, ...]] = [()]
        for parents, tokens in self.draft.passes:
            pairs = zip(parents[row].tolist(), tokens[row].tolist(), strict=True)
            paths += [(*paths[parent], token) for parent, token in pairs]
        return {path: index for index, path in reversed(list(enumerate(paths)))}


def _paths(tree: hsd.DraftTree) -> list[tuple[int, ...]]:
    """The tokens from the root, without it, to every node."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent in list(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True))[1:]:
        paths.append((*paths[parent], token))
    return paths


def _columns(tokens: Tensor, support: Tensor | None, width: int) -> Tensor:
    """Draft token ids Int64[n] of target token ids; -1 for a token that the draft vocabulary lacks."""
    if support is None:
        return torch.where(tokens < width, tokens, -1)
    same = tokens[:, None] == support.to(tokens.device)
    return torch.where(same.any(1), same.int().argmax(1), -1)


def _record(tree: hsd.DraftTree, probs: Tensor, decision: hsd.Decision, row: int, q: Tensor) -> TreeRecord:
    """probs Float[N, V], q Float[N]."""
    p = probs[tree.parents.clamp(min=0), tree.tokens]
    p[0] = 1
    sampled = tree.proposal_rows >= 0
    d = torch.ones_like(p)
    if tree.proposals is not None:
        columns = _columns(tree.tokens, tree.support, tree.proposals.shape[-1]).clamp(min=0)
        drawn = tree.proposals[tree.proposal_rows.clamp(min=0), columns].to(d)
        d = torch.where(sampled, drawn, d)
    return TreeRecord(
        tree.tokens.tolist(),
        tree.parents.tolist(),
        sampled.tolist(),
        p.tolist(),
        q.tolist(),
        d.tolist(),
        decision.stop[row, : len(tree)].tolist(),
        decision.path[row, : int(decision.accepted[row]) + 1].tolist(),
        int(decision.token[row]),
    )
