"""Decoding: read the prompt, then repeat draft -> score -> verify -> commit.

One step, for every row of the batch at once:

    draft     the drafter reads what was committed last and grows a tree from the root
    score     one target forward gives logits and features at every node
    verify    the stopping law decides the path to keep and the bonus token
    commit    the path's keys and values move behind the committed ones; the bonus token is the next root

The host waits once per step, in `_read_back`. Shapes: B batch, N nodes, K depth, V vocabulary, F tap width.
"""
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.drafters.base import Drafter
from eagle.sampling import Law
from eagle.target import CausalLM, Scores
from eagle.trees import TreeBatch, TreeSettings, find_tree, root_only


@dataclass(frozen=True)
class Plan:
    """How to decode: which tree, which verifier, which laws. Does not change during a generation."""

    tree: str
    settings: TreeSettings
    verifier: str
    target_law: Law
    draft_law: Law

    @property
    def depth(self) -> int:
        return 0 if find_tree(self.tree) is None else self.settings.depth


@dataclass
class Session:
    """What a generation carries from step to step.

    pending      Int64[B, K+1]      tokens committed by the last step, the next root last (right-padded)
    counts       Int64[B]           how many of `pending` are real
    features     [B, K+1, taps*F]   target features of the position before each pending token
    sequences    per row, prompt and generated tokens (host)
    active       per row, whether it still generates; the others go along and are ignored
    tree_nodes   rows scored in the last step
    """

    pending: Tensor
    counts: Tensor
    features: Tensor | None
    sequences: list[list[int]]
    active: list[bool]
    tree_nodes: int = 0
    clock: "PhaseClock" = field(default_factory=lambda: PhaseClock())

    @property
    def root(self) -> Tensor:
        return self.pending.gather(1, (self.counts - 1)[:, None])[:, 0]


class Outcome(NamedTuple):
    """What verification decided. path Int64[B, K+1] (nodes, padded with 0), accepted Int64[B], tokens Int64[B, K+1]
    (accepted tokens, then the bonus, then padding), expected Float[B] (E[accepted])."""

    path: Tensor
    accepted: Tensor
    tokens: Tensor
    expected: Tensor


class StepResult(NamedTuple):
    """One row's step on the host: token ids (accepted ones and the bonus), E[accepted], rows scored."""

    tokens: list[int]
    expected_accepted: float
    nodes: int


class PhaseClock:
    """Wall seconds per phase. `synchronize` makes device work count where it was caused (it costs a wait)."""

    def __init__(self, synchronize: bool = False):
        self.synchronize, self.seconds, self._last = synchronize, {}, 0.0

    def start(self) -> None:
        self.seconds, self._last = {}, self._now()

    def lap(self, phase: str) -> None:
        now = self._now()
        self.seconds[phase], self._last = now - self._last, now

    def _now(self) -> float:
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@torch.inference_mode()
def prefill(
    target: CausalLM, drafter: Drafter | None, plan: Plan, prompts: list[list[int]], room: int, generator
) -> Session:
    """Read the prompts, draw the first token of each row; caches get room for `room` more tokens per row."""
    slack = plan.depth + 1
    longest = max(map(len, prompts))
    builder = find_tree(plan.tree)
    target.reserve(len(prompts), _scratch(plan), longest + room, slack)
    if builder is not None:
        drafter.reserve(len(prompts), builder.slots(plan.settings), longest + room, slack)
    counts = torch.tensor([len(prompt) for prompt in prompts], device=target.device)
    tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=target.device)
    scores = target.prefill(tokens, counts)
    law = plan.target_law(scores.logits[:, 0], _padded_prefixes(plan, prompts, target.device))
    root = hsd.draw(law, generator)
    pending = torch.cat([tokens, torch.zeros_like(root)[:, None]], 1).scatter_(1, counts[:, None], root[:, None])
    sequences = [[*prompt, token] for prompt, token in zip(prompts, root.tolist())]
    return Session(pending, counts + 1, scores.features, sequences, [True] * len(prompts))


def _scratch(plan: Plan) -> int:
    return 1 if find_tree(plan.tree) is None else plan.settings.nodes


def _padded_prefixes(plan: Plan, sequences: list[list[int]], device: torch.device) -> Tensor | None:
    """Int64[B, T]: each row's tokens, padded with its own last token (a repeat changes no repetition penalty)."""
    if not plan.target_law.settings.needs_prefix:
        return None
    longest = max(map(len, sequences))
    return torch.tensor([row + [row[-1]] * (longest - len(row)) for row in sequences], device=device)


def draft(drafter: Drafter | None, plan: Plan, session: Session, generator) -> TreeBatch:
    """Grow one tree per row from its root."""
    builder = find_tree(plan.tree)
    if builder is None:
        return root_only(session.root)
    logits = drafter.read(session.pending, session.counts, session.features)
    root = session.root.to(logits.device)
    return builder.build(
        drafter, root, logits, plan.settings, plan.draft_law, lambda probs: hsd.draw(probs, generator)
    )


def score(target: CausalLM, tree: TreeBatch) -> Scores:
    """Target logits [B, N, V] and features [B, N, taps * F] at every node, in one forward."""
    ancestors = tree.ancestors()
    spare = target.cache.buffer.shape.scratch - ancestors.shape[-1]
    ancestors = torch.nn.functional.pad(ancestors, (0, spare))
    tokens, depths, ancestors = (x.to(target.device) for x in (tree.tokens, tree.depths, ancestors))
    return target.score(tokens, depths, ancestors)


def verify(plan: Plan, session: Session, tree: TreeBatch, scores: Scores, generator) -> Outcome:
    """Decide each row's path and bonus token from the exact stopping law; no host synchronisation."""
    laws = plan.target_law(scores.logits.to(tree.tokens.device), _node_prefixes(plan, session, tree))
    if tree.tokens.shape[1] == 1:
        return _only_root(laws, generator)
    rows = []
    for index, law in enumerate(laws):
        decision = hsd.decide(tree.row(index), law, plan.verifier, generator, ancestors=tree.ancestors()[index])
        path = decision.path.clamp(min=0)
        emitted = torch.cat([tree.tokens[index, path[1:]], decision.token[None]])
        place = torch.arange(len(path), device=path.device)
        emitted = torch.where(place == decision.length, decision.token, emitted)
        rows.append(Outcome(path, decision.length, emitted, decision.expected_accepted))
    return Outcome(*(torch.stack(parts) for parts in zip(*rows)))


def _only_root(laws: Tensor, generator) -> Outcome:
    """Plain decoding: nothing to accept, one draw from each row's law Float[B, 1, V]."""
    tokens = hsd.draw(laws, generator)
    nothing = torch.zeros_like(tokens)
    return Outcome(nothing, nothing[:, 0], tokens, nothing[:, 0].double())


def _node_prefixes(plan: Plan, session: Session, tree: TreeBatch) -> Tensor | None:
    """Int64[B, N, T + N]: the tokens before each node's next one: the sequence, then the node's own ancestors.

    Places of other nodes hold the root's token, which is part of every prefix.
    """
    base = _padded_prefixes(plan, session.sequences, tree.tokens.device)
    if base is None:
        return None
    count = tree.tokens.shape[1]
    own = torch.where(tree.ancestors(), tree.tokens[:, None], tree.tokens[:, :1, None])
    return torch.cat([base[:, None].expand(-1, count, -1), own], dim=-1)


def commit(target: CausalLM, session: Session, scores: Scores, outcome: Outcome) -> None:
    """Keep the accepted path in the cache and hand its tokens and features to the next draft."""
    counts = outcome.accepted + 1
    target.commit(outcome.path.to(target.device), counts.to(target.device))
    session.pending, session.counts, session.tree_nodes = outcome.tokens, counts, scores.logits.shape[1]
    if scores.features is not None:
        path = outcome.path.to(scores.features.device)
        index = path[:, :, None].expand(-1, -1, scores.features.shape[-1])
        session.features = scores.features.gather(1, index)


def _read_back(target: CausalLM, drafter: Drafter | None, session: Session, outcome: Outcome) -> list[StepResult]:
    """The step's one wait: bring the decision to the host and settle the host-side lengths."""
    packed = torch.cat([outcome.accepted[:, None].double(), outcome.expected[:, None], outcome.tokens], 1)
    nodes = session.tree_nodes
    results = [StepResult([int(token) for token in row[2 : 3 + int(row[0])]], row[1], nodes) for row in packed.tolist()]
    if drafter is not None:
        drafter.settle(max(map(len, session.sequences)))
    for sequence, result, active in zip(session.sequences, results, session.active):
        if active:
            sequence.extend(result.tokens)
    target.settle(max(map(len, session.sequences)) - 1)
    return results


@torch.inference_mode()
def step(
    target: CausalLM, drafter: Drafter | None, plan: Plan, session: Session, generator
) -> tuple[list[StepResult], dict[str, float]]:
    """One decoding step of every row; returns the rows' results and the wall seconds of each phase."""
    clock = session.clock
    clock.start()
    tree = draft(drafter, plan, session, generator)
    clock.lap("draft")
    scores = score(target, tree)
    clock.lap("score")
    outcome = verify(plan, session, tree, scores, generator)
    clock.lap("verify")
    commit(target, session, scores, outcome)
    results = _read_back(target, drafter if plan.depth else None, session, outcome)
    clock.lap("commit")
    return results, clock.seconds
