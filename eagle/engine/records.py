"""The record of a step's draft tree and of its verification (`EagleModel.generate(record_trees=True)`).

A recorder keeps references while a step runs and reads them on the host after the step's clock has stopped: what a step
takes does not change. It draws nothing, so the tokens are those of a generation without it.

Shapes: B batch, N nodes, R drafted distributions (of the root and of every node grown below it), V vocabulary, Vd draft
vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.api.outputs import TreeRecord
from eagle.drafters import Drafter
from eagle.engine.plan import Plan
from eagle.trees import DraftProbs, TreeBatch


class Grown(NamedTuple):
    """What one `grow` was given: parents as slots Int64[B, n], tokens Int64[B, n]."""

    parents: Tensor
    tokens: Tensor


class RecordingDrafter:
    """A `Drafter` that keeps the logits it gives, until the next `read`."""

    def __init__(self, drafter: Drafter):
        self._drafter = drafter
        self.logits: list[Tensor] = []  # [B, 1, Vd] of the root, then [B, n, Vd] of every `grow`
        self.grown: list[Grown] = []

    def __getattr__(self, name: str) -> Any:
        """Everything else is the drafter's own."""
        return getattr(self._drafter, name)

    def read(self, tokens: Tensor, counts: Tensor, aux: Tensor | None) -> Tensor:
        """As `Drafter.read`."""
        logits = self._drafter.read(tokens, counts, aux)
        self.logits, self.grown = [logits[:, None]], []
        return logits

    def rewind(self) -> None:
        """As `Drafter.rewind`."""
        self._drafter.rewind()
        del self.logits[1:], self.grown[:]

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """As `Drafter.grow`."""
        logits = self._drafter.grow(parents, tokens)
        self.logits.append(logits)
        self.grown.append(Grown(parents, tokens))
        return logits

    def slots(self, row: int) -> dict[tuple[int, ...], int]:
        """The slot of every grown path of tokens below the root, () being the root's. Equal paths have equal logits."""
        paths: list[tuple[int, ...]] = [()]
        for grown in self.grown:
            pairs = zip(grown.parents[row].tolist(), grown.tokens[row].tolist(), strict=True)
            paths += [(*paths[parent], token) for parent, token in pairs]
        return {path: slot for slot, path in reversed(list(enumerate(paths)))}


class TreeRecorder:
    """The trees of the latest step of a generation; `drafter` is the one to draft with."""

    def __init__(self, drafter: Drafter | None, plan: Plan):
        self.drafter: Any = None if drafter is None else RecordingDrafter(drafter)
        self.plan = plan
        self._step: tuple[TreeBatch, Tensor, hsd.Decision]

    def keep(self, tree: TreeBatch, probs: Tensor, decision: hsd.Decision) -> None:
        """A step after verification. probs Float[B, N, V]: p at every node."""
        self._step = tree, probs, decision

    @torch.inference_mode()
    def records(self) -> list[TreeRecord]:
        """The latest step's trees, one per row. Waits for the device."""
        tree, probs, decision = self._step
        return [
            _record(tree.row(row), probs[row], decision, row, self._draft_probs(tree.row(row), row))
            for row in range(len(tree))
        ]

    def _draft_probs(self, tree: hsd.DraftTree, row: int) -> Tensor:
        """q of every node's token after its parent: Float[N], 1 for the root."""
        found = torch.ones(len(tree), device=tree.tokens.device)
        if len(tree) == 1:
            return found
        paths, slots = _paths(tree), self.drafter.slots(row)
        logits = torch.cat([part[row] for part in self.drafter.logits])  # [R, Vd]
        q = DraftProbs(self._transform())(logits).to(found.device)
        rows = torch.tensor([slots[path[:-1]] for path in paths[1:]], device=found.device)
        columns = _columns(tree.tokens[1:], self.drafter.support, q.shape[-1])
        found[1:] = torch.where(columns >= 0, q[rows, columns.clamp(min=0)], 0)
        return found

    def _transform(self) -> Callable[[Tensor], Tensor]:
        draft = self.plan.draft
        return (lambda logits: logits.float().softmax(-1)) if draft.settings.greedy else draft


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
        decision.stop[row].tolist(),
        decision.path[row, : int(decision.length[row]) + 1].tolist(),
        int(decision.token[row]),
    )
