"""Toy worlds small enough to enumerate: two language models p, q over a few tokens, and ways to draft.

    model     prefix (a tuple of tokens) -> probs Float64[V]
    recipe    drafts a tree and takes every random token from `Dice`; run once per outcome of the dice, it enumerates
              all drafts with their probabilities, which sum to 1

Each sampled token is recorded with the distribution it was sampled from, as in a drafting engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hsd.tree import DraftTree

Prefix = tuple[int, ...]
Table = dict[Prefix, Tensor]
Children = list[tuple[int, Tensor | None]]  # token, and the distribution it was sampled from (None: top-k)


@dataclass(frozen=True)
class World:
    """target and draft: probs of the next token after every prefix of up to `depth` tokens."""

    name: str
    vocabulary: int
    depth: int
    target: Table
    draft: Table


class Dice:
    """Replays one sequence of outcomes and notes where a new decision is needed."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.position, self.probability = script, 0, 1.0
        self.options: list[int] = []

    def roll(self, probs: Tensor) -> int:
        """The next scripted outcome; past the script, the first possible token."""
        possible = [x for x, q in enumerate(probs.tolist()) if q > 0]
        if self.position == len(self.script):
            self.script.append(0)
        choice = self.script[self.position]
        self.options.append(len(possible))
        self.position += 1
        self.probability *= float(probs[possible[choice]])
        return possible[choice]

    def roll_distinct(self, probs: Tensor, count: int) -> list[tuple[int, Tensor]]:
        """Up to `count` possible tokens in turn, each with the distribution that it came from: `probs` without the
        tokens before it, renormalised.
        """
        rolled: list[tuple[int, Tensor]] = []
        while len(rolled) < count and bool((probs > 0).any()):
            probs = probs / probs.sum()
            token = self.roll(probs)
            rolled.append((token, probs))
            probs = probs.index_fill(0, torch.tensor([token]), 0)
        return rolled


class Sketch:
    """A draft tree under construction; node 0 is the root, whose prefix is empty."""

    def __init__(self) -> None:
        self.prefixes: list[Prefix] = [()]
        self.parents = [-1]
        self.proposals: list[Tensor | None] = [None]

    def add(self, parent: int, token: int, probs: Tensor | None = None) -> int:
        """Append a child: sampled from `probs`, or a top-k child where it is None. Returns its index."""
        self.prefixes.append(self.prefixes[parent] + (token,))
        self.parents.append(parent)
        self.proposals.append(probs)
        return len(self.parents) - 1

    def tree(self) -> DraftTree:
        """Freeze into a DraftTree, with the token 0 at the root."""
        sampled = [probs for probs in self.proposals if probs is not None]
        rows, count = [], 0
        for probs in self.proposals:
            rows.append(-1 if probs is None else count)
            count += probs is not None
        tokens = [0] + [prefix[-1] for prefix in self.prefixes[1:]]
        return DraftTree(
            torch.tensor(tokens),
            torch.tensor(self.parents),
            torch.tensor(rows),
            torch.stack(sampled) if sampled else None,
        )


@dataclass(frozen=True)
class Draft:
    """One outcome of a recipe: its probability, the tree, the prefix of every node, and p at every node."""

    probability: float
    tree: DraftTree
    prefixes: list[Prefix]
    target: Tensor


Recipe = Callable[[World, Dice], Sketch]


def enumerate_drafts(world: World, recipe: Recipe) -> list[Draft]:
    """Every outcome of `recipe`, with its probability (they sum to 1)."""
    drafts = list(_outcomes(world, recipe))
    total = sum(draft.probability for draft in drafts)
    if abs(total - 1) > 1e-9:
        raise RuntimeError(f"the drafts' probabilities sum to {total}, not 1: the recipe is wrong")
    return drafts


def _outcomes(world: World, recipe: Recipe) -> Iterator[Draft]:
    script: list[int] | None = []
    while script is not None:
        dice = Dice(script)
        sketch = recipe(world, dice)
        target = torch.stack([world.target[prefix] for prefix in sketch.prefixes])
        yield Draft(dice.probability, sketch.tree(), sketch.prefixes, target)
        script = _next_script(dice.script, dice.options)


def _next_script(script: list[int], options: list[int]) -> list[int] | None:
    """Count up like an odometer whose last wheel turns first."""
    for last in range(len(script) - 1, -1, -1):
        if script[last] + 1 < options[last]:
            return script[:last] + [script[last] + 1]
    return None


def chain(world: World, dice: Dice) -> Sketch:
    """One sampled path."""
    return paths(world, dice, count=1)


def paths(world: World, dice: Dice, count: int = 2) -> Sketch:
    """`count` i.i.d. sampled paths from the root: separate nodes even where tokens repeat."""
    sketch = Sketch()
    ends = [0] * count
    for _ in range(world.depth):
        for k, end in enumerate(ends):
            probs = world.draft[sketch.prefixes[end]]
            ends[k] = sketch.add(end, dice.roll(probs), probs)
    return sketch


def without_replacement(world: World, dice: Dice, count: int = 2) -> Sketch:
    """Every node samples `count` distinct children: each from q without its earlier siblings' tokens."""
    return _grow(world, lambda _node, probs: [*dice.roll_distinct(probs, count)])


def topk(world: World, dice: Dice, count: int = 2) -> Sketch:
    """The `count` most probable tokens under q at every node: nothing is random."""
    del dice
    return _grow(world, lambda _node, probs: [(x, None) for x in probs.topk(count).indices.tolist()])


def hybrid(world: World, dice: Dice, sampled_first: bool = True) -> Sketch:
    """At every node the most probable token and one sampled from q without it."""

    def children(_node: int, probs: Tensor) -> Children:
        top = int(probs.argmax())
        rest = probs.index_fill(0, torch.tensor([top]), 0)
        if not bool((rest > 0).any()):
            return [(top, None)]
        rest = rest / rest.sum()
        pair = [(dice.roll(rest), rest), (top, None)]
        return pair if sampled_first else pair[::-1]

    return _grow(world, children)


def hybrid_sampled_last(world: World, dice: Dice) -> Sketch:
    """As `hybrid`, with the top-k child verified first."""
    return hybrid(world, dice, sampled_first=False)


def overlapping(world: World, dice: Dice) -> Sketch:
    """Top-k, sampled from q sharpened, sampled from q, top-k: any order, with repeats."""

    def children(node: int, probs: Tensor) -> Children:
        sharp = probs**2 / (probs**2).sum()
        top = probs.topk(2).indices.tolist()
        if node:
            return [(dice.roll(sharp), sharp), (top[0], None)]
        return [(top[0], None), (dice.roll(sharp), sharp), (dice.roll(probs), probs), (top[1], None)]

    return _grow(world, children)


def _grow(world: World, children: Callable[[int, Tensor], Children]) -> Sketch:
    """Breadth first to the world's depth."""
    sketch, frontier = Sketch(), [0]
    for _ in range(world.depth):
        grown = []
        for node in frontier:
            for token, probs in children(node, world.draft[sketch.prefixes[node]]):
                grown.append(sketch.add(node, token, probs))
        frontier = grown
    return sketch


RECIPES: dict[str, Recipe] = {
    "top-k": topk,
    "chain": chain,
    "multi": paths,
    "without replacement": without_replacement,
    "hybrid": hybrid,
    "hybrid, sampled last": hybrid_sampled_last,
    "overlapping": overlapping,
}


def random_world(name: str, vocabulary: int, depth: int, seed: int, **options: Any) -> World:
    """Dirichlet-like random tables for every prefix. options: see `_pair`."""
    generator = torch.Generator().manual_seed(seed)
    target, draft = {}, {}
    for length in range(depth + 1):
        for prefix in product(range(vocabulary), repeat=length):
            target[prefix], draft[prefix] = _pair(vocabulary, generator, **options)
    return World(name, vocabulary, depth, target, draft)


def _pair(
    vocabulary: int,
    generator: torch.Generator,
    zeros: bool = False,
    equal: bool = False,
    one_hot: bool = False,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor]:
    scores = torch.randn(2, vocabulary, dtype=torch.float64, generator=generator) * spread
    p, q = scores.softmax(-1)
    if zeros:
        p, q = (_drop_one(probs, generator) for probs in (p, q))
    if one_hot:
        p = torch.zeros_like(p).index_fill(0, scores[0].argmax(), 1)
    return p, p if equal else q


def _drop_one(probs: Tensor, generator: torch.Generator) -> Tensor:
    token = torch.randint(len(probs), (1,), generator=generator)
    kept = probs.index_fill(0, token, 0)
    return kept / kept.sum()


WORLDS: dict[str, dict[str, bool]] = {
    "random": {},
    "zeros": {"zeros": True},
    "p == q": {"equal": True},
    "one-hot p": {"one_hot": True},
}
"""Options of `random_world` by name."""
