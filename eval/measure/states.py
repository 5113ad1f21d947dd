"""Decoding states of a pair along the target's own answers, and sampled paths drafted at them.

Both models keep what they have read in a `Forest`: the answers to several questions behind one prefix, with drafts as
branches of them, so that one forward serves many states.

Shapes: B states, N nodes, K depth, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import hsd
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.trees import DraftProbs, TreeSettings, find_tree
from eval.measure.forest import Forest, ForestDrafter
from hsd import TreeBatch

SCORED = 128  # nodes whose target distributions are in memory together


class Answer(NamedTuple):
    """One sampled answer. first: node of its first token in the target's forest, one node per token before that."""

    tokens: list[int]
    ended: bool
    prompt_nodes: list[int]
    nodes: list[int]


class Pair(NamedTuple):
    """Both models behind the same prefix; `stops` ends an answer."""

    target: Forest
    drafter: ForestDrafter
    stops: frozenset[int]


# --- answers and states -----------------------------------------------------------------------------------------------


def sample_answers(
    pair: Pair, rows: list[list[int]], probs: SamplingTransform, generators: list[torch.Generator], limit: int
) -> list[Answer]:
    """The target's own answers to prompts (without the shared prefix), all rows at once."""
    forest = pair.target
    tokens: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    for prompt in rows:
        first = forest.filled + len(tokens)
        parents += [-1, *range(first, first + len(prompt) - 1)]
        tokens += prompt
        ends.append(len(tokens) - 1)
    start = forest.filled
    logits = forest.grow(tokens, parents, wanted=ends)
    answers = [
        Answer([], False, list(range(start + end + 1 - len(prompt), start + end + 1)), [])
        for prompt, end in zip(rows, ends, strict=True)
    ]
    active = list(range(len(rows)))
    while active:
        drawn = [int(hsd.draw(probs(line)[None], generators[row])) for line, row in zip(logits, active, strict=True)]
        for row, token in zip(active, drawn, strict=True):
            answers[row].tokens.append(token)
            answers[row] = answers[row]._replace(ended=token in pair.stops)
        going = [row for row in active if not answers[row].ended and len(answers[row].tokens) < limit]
        first = forest.filled
        if not going:
            break
        last = [(answers[row].nodes or answers[row].prompt_nodes)[-1] for row in going]
        logits = forest.grow([answers[row].tokens[-1] for row in going], last)
        for place, row in enumerate(going):
            answers[row].nodes.append(first + place)
        active = going
    return answers


class State(NamedTuple):
    """A place of an answer: its last token, and the nodes before that one in both forests. seed: of its drafts."""

    question: int
    root: int
    token: int
    in_target: int
    in_draft: int
    seed: int


def positions(length: int, stride: int, generator: torch.Generator) -> list[int]:
    """Places of an answer's tokens that are roots: every `stride`-th from a drawn one on, never the last."""
    offset = int(torch.randint(stride, (1,), generator=generator))
    return list(range(offset % max(length - 1, 1), length - 1, stride))


def states_of(
    pair: Pair, prompts: list[list[int]], answers: list[Answer], seeds: list[int], stride: int
) -> list[State]:
    """The states of some answers, which the draft model reads."""
    forest = pair.drafter.forest
    tokens: list[int] = []
    parents: list[int] = []
    states: list[State] = []
    for question, (prompt, answer, seed) in enumerate(zip(prompts, answers, seeds, strict=True)):
        roots = positions(len(answer.tokens), stride, torch.Generator().manual_seed(seed))
        text = [*prompt, *answer.tokens[: max(roots, default=0)]]
        first = forest.filled + len(tokens)
        parents += [-1, *range(first, first + len(text) - 1)]
        tokens += text
        for root in roots:
            in_target = answer.nodes[root - 1] if root else answer.prompt_nodes[-1]
            in_draft = first + len(prompt) + root - 1
            states.append(State(question, root, answer.tokens[root], in_target, in_draft, seed + 7919 * (root + 1)))
    forest.grow(tokens, parents, wanted=[])
    return states


# --- drafts -----------------------------------------------------------------------------------------------------------


class Drafts(NamedTuple):
    """Drafted trees of B states, `paths` each, and the target distributions at their nodes, Float[B, N, V]."""

    batch: TreeBatch
    target_probs: Tensor
    paths: int


def draft(pair: Pair, states: list[State], temperature: float, paths: int, depth: int) -> TreeBatch:
    """Sampled paths by the real builder at B states; the draft model's forest stays as it was."""
    mark = pair.drafter.forest.filled
    logits = pair.drafter.read([state.token for state in states], [state.in_draft for state in states])
    builder = find_tree("chain" if paths == 1 else "multi")
    assert builder is not None
    settings = TreeSettings(1 + paths * depth, depth, paths if paths > 1 else None)
    generators = [torch.Generator().manual_seed(state.seed) for state in states]
    draw = lambda q: torch.stack([hsd.draw(row, own) for row, own in zip(q, generators, strict=True)])
    probs = DraftProbs(SamplingTransform(SamplingParams(temperature)))
    batch = builder.build(pair.drafter, torch.tensor([state.token for state in states]), logits, settings, probs, draw)
    pair.drafter.forest.truncate(mark)
    return batch


def scored(
    pair: Pair, states: list[State], batch: TreeBatch, temperature: float, paths: int
) -> Iterator[tuple[State, Drafts]]:
    """Each state with its tree, scored by the target, whose forest stays as it was."""
    forest, nodes, transform = pair.target, batch.tokens.shape[1], SamplingTransform(SamplingParams(temperature))
    for start in range(0, len(states), max(SCORED // nodes, 1)):
        rows = range(start, min(start + max(SCORED // nodes, 1), len(states)))
        mark = forest.filled
        tokens: list[int] = []
        parents: list[int] = []
        for row in rows:
            first = mark + len(tokens)
            tokens += batch.tokens[row].tolist()
            parents += [states[row].in_target if up < 0 else first + up for up in batch.parents[row].tolist()]
        probs = transform(forest.grow(tokens, parents)).view(len(rows), nodes, -1)
        forest.truncate(mark)
        for row in rows:
            yield states[row], Drafts(TreeBatch.of_one(batch.row(row)), probs[row - start][None], paths)


def cut(drafts: Drafts, paths: int, depth: int) -> Drafts:
    """The first `paths` paths to `depth`: what would have been drafted with these limits and the same draws."""
    batch, before = drafts.batch, drafts.paths
    nodes = torch.arange(batch.tokens.shape[1])
    level, path = (nodes + before - 1) // before, (nodes - 1) % before
    keep = ((level <= depth) & ((path < paths) | (nodes == 0))).nonzero()[:, 0]
    inner = keep[level[keep] < depth]  # row i of the proposals is node i's
    parents = torch.searchsorted(keep, batch.parents[:, keep].clamp(min=0))  # a first path with a token is kept too
    parents[:, 0] = -1
    assert batch.proposals is not None
    smaller = TreeBatch(
        batch.tokens[:, keep],
        parents,
        batch.depths[:, keep],
        parents,
        batch.proposals[:, inner],
        batch.support,
        hsd.Layout.infer(parents[0].tolist(), (parents[0] >= 0).tolist()),  # one state's: no node is looked at twice
    )
    return Drafts(smaller, drafts.target_probs[:, keep], paths)


def in_float64(drafts: Drafts) -> Drafts:
    """p and q in float64, every row renormalized."""
    batch = drafts.batch
    assert batch.proposals is not None
    p, q = drafts.target_probs.double(), batch.proposals.double()
    raised = dataclasses.replace(batch, proposals=q / q.sum(-1, keepdim=True))
    return Drafts(raised, p / p.sum(-1, keepdim=True), drafts.paths)
