"""Decoding: read the prompt, then repeat draft -> score -> verify -> commit.

One step, for every row of the batch at once:

    draft     the drafter reads what was committed last and grows a tree from the root
    score     one target forward gives logits and features at every node
    verify    the stopping law decides the path to keep and the bonus token
    commit    the path's keys and values move behind the committed ones; the bonus token is the next root

The host waits once per step, in `_read_back`; from the second step on the phases can be replayed
(`eagle.engine.cuda_graphs`).
Shapes: B batch, N nodes, K depth, V vocabulary, F tap width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.drafters.base import Drafter
from eagle.engine.cuda_graphs import GraphRunner
from eagle.engine.sequence import PhaseClock, Plan, Session, StepState, Stock
from eagle.modules.target import CachedLM, Scores
from eagle.trees import TreeBatch, find_tree, root_only

__all__ = [
    "Outcome",
    "PhaseClock",
    "Plan",
    "Session",
    "StepResult",
    "commit",
    "draft",
    "prefill",
    "score",
    "step",
    "verify",
]


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


@torch.inference_mode()
def prefill(
    target: CachedLM,
    drafter: Drafter | None,
    plan: Plan,
    prompts: list[list[int]],
    room: int,
    generator,
    stock: Stock | None = None,
) -> Session:
    """Read the prompts, draw the first token of each row; caches get room for `room` more tokens per row.

    `stock`: where the session shall keep what it carries from step to step; None: in tensors of its own.
    """
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
    carried = StepState(pending, counts + 1, scores.features)
    return Session(carried, sequences, [True] * len(prompts), {} if stock is None else stock)


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
    return builder.build(drafter, root, logits, plan.settings, plan.draft_law, lambda probs: hsd.draw(probs, generator))


def score(target: CachedLM, tree: TreeBatch) -> Scores:
    """Target logits [B, N, V] and features [B, N, taps * F] at every node, in one forward."""
    ancestors = tree.ancestors()
    spare = target.scratch - ancestors.shape[-1]
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


def commit(target: CachedLM, session: Session, scores: Scores, outcome: Outcome) -> None:
    """Keep the accepted path in the cache and hand its tokens and features to the next draft."""
    counts, features = outcome.accepted + 1, scores.features
    target.commit(outcome.path.to(target.device), counts.to(target.device))
    if features is not None:
        path = outcome.path.to(features.device)
        features = features.gather(1, path[:, :, None].expand(-1, -1, features.shape[-1]))
    session.hand_over(StepState(outcome.tokens, counts, features))


def _finish(target: CachedLM, session: Session, scores: Scores, outcome: Outcome) -> Tensor:
    """Commit, and pack what the host wants to know: accepted, E[accepted], tokens as Float64[B, K+3]."""
    commit(target, session, scores, outcome)
    return torch.cat([outcome.accepted[:, None].double(), outcome.expected[:, None], outcome.tokens], 1)


def _read_back(
    target: CachedLM, drafter: Drafter | None, session: Session, packed: Tensor, nodes: int
) -> list[StepResult]:
    """The step's one wait: bring the decision to the host and set_length_bound the host-side lengths."""
    results = [StepResult([int(token) for token in row[2 : 3 + int(row[0])]], row[1], nodes) for row in packed.tolist()]
    if drafter is not None:
        drafter.set_length_bound(max(map(len, session.sequences)))
    for sequence, result, active in zip(session.sequences, results, session.active):
        if active:
            sequence.extend(result.tokens)
    target.set_length_bound(max(map(len, session.sequences)) - 1)
    return results


def _open(target: CachedLM, drafter: Drafter | None, plan: Plan, session: Session, generator, captured: GraphRunner):
    """Tell the recordings which step this is: everything on the host that decides what it does, and its tensors."""
    windows = (target.window(), 0 if drafter is None else drafter.window(session.pending.shape[1]))
    kind = session.carried.kind()
    state = {"target": target.state(), kind: [part for part in session.carried if part is not None]}
    if drafter is not None:
        state["drafter"] = drafter.state()
    captured.begin((plan, kind, windows, target.attention), state, generator)


@torch.inference_mode()
def step(
    target: CachedLM,
    drafter: Drafter | None,
    plan: Plan,
    session: Session,
    generator,
    captured: GraphRunner | None = None,
) -> tuple[list[StepResult], dict[str, float]]:
    """One decoding step of every row; returns the rows' results and the wall seconds of each phase.

    `captured`: recordings to replay the phases from, and to add to; the first step after a prompt is never recorded.
    """
    clock, drafter = session.clock, drafter if plan.depth else None
    captured = captured if session.begun else None
    clock.start()
    if captured is not None:
        _open(target, drafter, plan, session, generator, captured)
    run = captured.run if captured is not None else lambda phase, function: function(generator)
    tree = run("draft", lambda source: draft(drafter, plan, session, source))
    clock.lap("draft")
    scores = run("score", lambda source: score(target, tree))
    clock.lap("score")
    outcome = run("verify", lambda source: verify(plan, session, tree, scores, source))
    clock.lap("verify")
    packed = run("commit", lambda source: _finish(target, session, scores, outcome))
    results = _read_back(target, drafter, session, packed, tree.tokens.shape[1])
    if captured is not None:
        captured.end(generator)
    clock.lap("commit")
    return results, clock.seconds
