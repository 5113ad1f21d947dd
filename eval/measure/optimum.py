"""How much of what any lossless verifier could accept is reached? Toy worlds, by linear programming.

    python -m eval.measure.optimum --worlds 10 --trees hybrid rsd topk

For random models over a few tokens, every outcome of the real builders is enumerated with its probability. HSD and
token-wise verification of these trees are compared with two optima over lossless verifiers of the same trees
(hsd/audit/optimum.py, needs scipy):

    all-seeing   knows both models' probabilities behind every prefix, drafted or not
    optimum      knows them at drafted nodes, as a verifier does: behind each first token the two models have one of two
                 pairs of laws, and one verifier has to be lossless in all of these worlds

Reported are means over worlds, the same ones for every kind of tree.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hsd
from eagle import command, trees
from eagle.trees import TREES, TreeSettings, find_tree
from eval.report.markdown import markdown_table
from hsd.audit.optimum import optimum
from hsd.audit.worlds import Dice, Draft, World, random_world

SHAPES = [  # vocabulary, settings of the tree
    (3, TreeSettings(4, 2, beta=0.8)),
    (3, TreeSettings(5, 2, beta=0.8)),
    (4, TreeSettings(4, 2, beta=0.8)),
    (4, TreeSettings(5, 2, beta=0.5)),
    (3, TreeSettings(4, 3, beta=0.8)),
    (3, TreeSettings(5, 3, beta=0.8)),
]

OTHER = 1000  # added to a world's seed for the laws that its variants take instead
KINDS = [name for name, builder in TREES.items() if builder]


class WorldDrafter:
    """A world's draft model as what a `Draft` grows with, one row; logits are log-probabilities."""

    support: Tensor | None = None

    def __init__(self, world: World):
        """A drafter of one world."""
        self.world = world
        self.prefixes: list[tuple[int, ...]] = [()]

    def rewind(self) -> None:
        """Drafting starts over at the root."""
        self.prefixes = [()]

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Logits [1, n, V] after new nodes; `parents` counts the root as 0."""
        new = [(*self.prefixes[p], t) for p, t in zip(parents[0].tolist(), tokens[0].tolist())]
        self.prefixes += new
        return torch.stack([self.world.draft[prefix].log() for prefix in new])[None]


class DiceDraft(trees.Draft):
    """A `Draft` of one row whose samples are rolls of dice, which can be replayed."""

    def __init__(self, world: World, dice: Dice):
        """At the root of a world."""
        root, logits = torch.zeros(1, dtype=torch.int64), world.draft[()].log()[None]
        super().__init__(WorldDrafter(world), root, logits, lambda x: x.softmax(-1), torch.zeros(1, 0))
        self.dice = dice

    def sample(self, probs: Tensor, places: Tensor | None = None, reserved: int | None = None) -> Tensor:  # noqa: ARG002
        """As `Draft`; the dice need no numbers."""
        return torch.tensor([[self.dice.roll(law) for law in probs[0]]])

    def sample_distinct(self, probs: Tensor, count: int) -> Tensor:
        """As `Draft`."""
        return torch.tensor([[self._several(law, count) for law in probs[0]]])

    def _several(self, law: Tensor, count: int) -> list[int]:
        rolled = [token for token, _ in self.dice.roll_distinct(law, count)]
        return [*rolled, *(token for token in range(len(law)) if token not in rolled)][:count]


def drafts(world: World, settings: TreeSettings, tree: str) -> Iterator[Draft]:
    """Every outcome of the real builder."""
    builder = find_tree(tree)
    if builder is None:
        raise ValueError(f"tree {tree!r} drafts nothing; known: {', '.join(KINDS)}")
    scripts: list[list[int]] = [[]]
    while scripts:
        dice = Dice(scripts.pop())
        known = len(dice.script)
        drafted = builder.build(DiceDraft(world, dice), settings).row(0)
        prefixes: list[tuple[int, ...]] = [()]
        for token, parent in zip(drafted.tokens.tolist()[1:], drafted.parents.tolist()[1:]):
            prefixes.append((*prefixes[parent], token))
        yield Draft(dice.probability, drafted, prefixes, torch.stack([world.target[prefix] for prefix in prefixes]))
        for place in range(known, len(dice.script)):
            scripts += [[*dice.script[:place], other] for other in range(1, dice.options[place])]


def merged(outcomes: Iterator[Draft], least: float = 1e-12) -> list[Draft]:
    """Equal trees once, without the outcomes that only rounding makes possible."""
    found: dict[Any, Draft] = {}
    for draft in outcomes:
        key = tuple(draft.prefixes), tuple(draft.tree.proposal_rows.tolist())
        earlier = found.get(key)
        probability = draft.probability + (earlier.probability if earlier else 0)
        found[key] = Draft(probability, draft.tree, draft.prefixes, draft.target)
    return [draft for draft in found.values() if draft.probability > least]


def variants(vocabulary: int, depth: int, seed: int) -> list[World]:
    """2 ** V worlds: behind each first token the models have one of two pairs of laws of the next one."""
    world, other = (random_world("toy", vocabulary, depth, s) for s in (seed, seed + OTHER))
    found = []
    for choice in itertools.product((world, other), repeat=vocabulary):
        target, draft = dict(world.target), dict(world.draft)
        for token, taken in enumerate(choice):
            target[(token,)], draft[(token,)] = taken.target[(token,)], taken.draft[(token,)]
        found.append(replace(world, target=target, draft=draft))
    return found


def accepted(outcomes: list[Draft], verifier: str) -> float:
    """E[accepted] of a verifier on all outcomes of drafting in a world."""
    return sum(d.probability * hsd.stopping_law(d.tree, d.target, verifier).expected_accepted.item() for d in outcomes)


def compare(vocabulary: int, settings: TreeSettings, seed: int, tree: str) -> dict[str, float] | None:
    """E[accepted] by verifier, means over the variants of one world; None where a program is too large."""
    worlds = variants(vocabulary, settings.depth, seed)
    outcomes = [merged(drafts(world, settings, tree)) for world in worlds]
    best = optimum(worlds, outcomes)
    seeing = [optimum([world], [one]) for world, one in zip(worlds, outcomes)]
    values = [value for value in seeing if value is not None]
    if best is None or len(values) < len(worlds):
        return None
    found = {rule: float(np.mean([accepted(one, rule) for one in outcomes])) for rule in ("token", "hsd")}
    return {**found, "optimum": best, "all-seeing": float(np.mean(values))}


def table(worlds: int, seed: int, kinds: list[str]) -> str:
    """Markdown: one row per shape and kind of tree."""
    header = ["tokens", "nodes", "depth", "beta", "tree", "token-wise", "HSD", "optimum", "all-seeing", "HSD / optimum"]
    lines = []
    for (vocabulary, settings), tree in itertools.product(SHAPES, kinds):
        rows = [row for k in range(worlds) if (row := compare(vocabulary, settings, seed + k, tree))]
        if not rows:
            continue
        means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
        sizes = [str(vocabulary), str(settings.nodes), str(settings.depth), str(settings.beta), tree]
        lines.append([*sizes, *(f"{value:.4f}" for value in means.values()), f"{means['hsd'] / means['optimum']:.1%}"])
    return markdown_table(header, lines)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = command.parser("eval.measure.optimum", __doc__)
    parser.add_argument("--worlds", type=command.COUNT, default=10)
    parser.add_argument("--seed", type=command.SEED, default=0)
    parser.add_argument("--trees", nargs="+", default=["hybrid"], choices=KINDS)
    return command.start(parser, lambda given: print(table(given.worlds, given.seed, given.trees)), argv)


if __name__ == "__main__":
    raise SystemExit(main())
