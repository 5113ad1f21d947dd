"""Toy worlds small enough to enumerate: two language models p, q over a few tokens, and ways to draft.

A model is a table: prefix (a tuple of tokens) -> law Float64[V]. A recipe drafts a tree and asks `Dice` for
every random token; run once per outcome of the dice, it enumerates all drafts with their probabilities.
Each sampled token is recorded with the law it was drawn from, as a drafting engine has to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from hsd.tree import DraftTree

Prefix = tuple[int, ...]
Table = dict[Prefix, Tensor]


@dataclass(frozen=True)
class World:
    """target and draft: laws of the next token after every prefix of up to `depth` tokens."""

    name: str
    vocabulary: int
    depth: int
    target: Table
    draft: Table


class Dice:
    """Replays one sequence of outcomes and notes where a new decision is needed."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.position, self.options, self.probability = script, 0, [], 1.0

    def roll(self, law: Tensor) -> int:
        """The next scripted outcome; past the script, the first possible token."""
        possible = [x for x, q in enumerate(law.tolist()) if q > 0]
        if self.position == len(self.script):
            self.script.append(0)
        choice = self.script[self.position]
        self.options.append(len(possible))
        self.position += 1
        self.probability *= float(law[possible[choice]])
        return possible[choice]


class Sketch:
    """A draft tree under construction; node 0 is the root, whose prefix is empty."""

    def __init__(self) -> None:
        self.prefixes: list[Prefix] = [()]
        self.parents, self.laws = [-1], [None]

    def add(self, parent: int, token: int, law: Tensor | None = None) -> int:
        """Append a child: chosen if law is None, else drawn from it. Returns its index."""
        self.prefixes.append(self.prefixes[parent] + (token,))
        self.parents.append(parent)
        self.laws.append(law)
        return len(self.parents) - 1

    def tree(self) -> DraftTree:
        """Freeze into a DraftTree, with the token 0 at the root."""
        drawn = [law for law in self.laws if law is not None]
        rows, count = [], 0
        for law in self.laws:
            rows.append(-1 if law is None else count)
            count += law is not None
        tokens = [0] + [prefix[-1] for prefix in self.prefixes[1:]]
        return DraftTree(
            torch.tensor(tokens), torch.tensor(self.parents), torch.tensor(rows), torch.stack(drawn) if drawn else None
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
            law = world.draft[sketch.prefixes[end]]
            ends[k] = sketch.add(end, dice.roll(law), law)
    return sketch


def without_replacement(world: World, dice: Dice, count: int = 2) -> Sketch:
    """Every node samples `count` distinct children: each from q without its earlier siblings' tokens."""

    def children(node: int, law: Tensor) -> list[tuple[int, Tensor | None]]:
        drawn = []
        for _ in range(count):
            if not bool((law > 0).any()):
                break
            law = law / law.sum()
            token = dice.roll(law)
            drawn.append((token, law))
            law = law.index_fill(0, torch.tensor([token]), 0)
        return drawn

    return _grow(world, children)


def chosen(world: World, dice: Dice, count: int = 2) -> Sketch:
    """The `count` most probable tokens under q at every node: nothing is random."""
    return _grow(world, lambda node, law: [(x, None) for x in law.topk(count).indices.tolist()])


def hybrid(world: World, dice: Dice, sampled_first: bool = True) -> Sketch:
    """At every node the most probable token is chosen and one more is sampled from q without it."""

    def children(node: int, law: Tensor) -> list[tuple[int, Tensor | None]]:
        top = int(law.argmax())
        rest = law.index_fill(0, torch.tensor([top]), 0)
        if not bool((rest > 0).any()):
            return [(top, None)]
        rest = rest / rest.sum()
        pair = [(dice.roll(rest), rest), (top, None)]
        return pair if sampled_first else pair[::-1]

    return _grow(world, children)


def hybrid_sampled_last(world: World, dice: Dice) -> Sketch:
    """As `hybrid`, with the chosen child verified first."""
    return hybrid(world, dice, sampled_first=False)


def overlapping(world: World, dice: Dice) -> Sketch:
    """Chosen, sampled from q sharpened, sampled from q, chosen: any order, with repeats."""

    def children(node: int, law: Tensor) -> list[tuple[int, Tensor | None]]:
        sharp = law**2 / (law**2).sum()
        top = law.topk(2).indices.tolist()
        if node:
            return [(dice.roll(sharp), sharp), (top[0], None)]
        return [(top[0], None), (dice.roll(sharp), sharp), (dice.roll(law), law), (top[1], None)]

    return _grow(world, children)


def _grow(world: World, children: Callable[[int, Tensor], list[tuple[int, Tensor | None]]]) -> Sketch:
    """Breadth first to the world's depth."""
    sketch, frontier = Sketch(), [0]
    for _ in range(world.depth):
        grown = []
        for node in frontier:
            for token, law in children(node, world.draft[sketch.prefixes[node]]):
                grown.append(sketch.add(node, token, law))
        frontier = grown
    return sketch


RECIPES: dict[str, Recipe] = {
    "chosen": chosen,
    "chain": chain,
    "multi": paths,
    "without replacement": without_replacement,
    "hybrid": hybrid,
    "hybrid, sampled last": hybrid_sampled_last,
    "overlapping": overlapping,
}


def random_world(name: str, vocabulary: int, depth: int, seed: int, **options) -> World:
    """Dirichlet-like random tables for every prefix. options: see `_law`."""
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
        p, q = (_drop_one(law, generator) for law in (p, q))
    if one_hot:
        p = torch.zeros_like(p).index_fill(0, scores[0].argmax(), 1)
    return p, p if equal else q


def _drop_one(law: Tensor, generator: torch.Generator) -> Tensor:
    token = torch.randint(len(law), (1,), generator=generator)
    kept = law.index_fill(0, token, 0)
    return kept / kept.sum()


WORLDS: dict[str, dict[str, bool]] = {
    "random": {},
    "zeros": {"zeros": True},
    "p == q": {"equal": True},
    "one-hot p": {"one_hot": True},
}
"""Options of `random_world` by name."""
