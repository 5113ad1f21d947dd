"""Tree builders by name. Each grows one tree per batch row; see `eagle.trees.base` for the rule they keep."""

from collections.abc import Callable
from typing import NamedTuple

from eagle.trees import hybrid, paths, rsd, topk
from eagle.trees.base import DraftProbs, GeneratorDraw, TreeBatch, TreeSettings, root_only
from eagle.trees.grown import grown_slots


class TreeBuilder(NamedTuple):
    """How one kind of tree is grown.

    build          (drafter, root Int64[B], logits [B, Vd] after it, settings, probs: DraftProbs, draw) -> TreeBatch
    slots          settings -> number of nodes given to the drafter
    single_path    whether every tree is one path, whatever the settings
    greedy         the tree built in its place at temperature 0; None: itself
    sampled        whether tokens of it are sampled
    """

    build: Callable[..., TreeBatch]
    slots: Callable[[TreeSettings], int]
    single_path: bool = False
    greedy: str | None = None
    sampled: bool = True


TREES: dict[str, TreeBuilder | None] = {
    "none": None,  # plain decoding: the root alone
    "topk": TreeBuilder(topk.build, topk.slots, sampled=False),
    "chain": TreeBuilder(paths.build_chain, paths.chain_slots, single_path=True),
    "multi": TreeBuilder(paths.build_multi, paths.multi_slots),
    "rsd": TreeBuilder(rsd.build, grown_slots, greedy="topk"),
    "hybrid": TreeBuilder(hybrid.build, grown_slots, greedy="topk"),
}


def find_tree(name: str) -> TreeBuilder | None:
    if name not in TREES:
        raise ValueError(f"tree {name!r} is not known; known: {', '.join(TREES)}")
    return TREES[name]


def greedy_tree(name: str) -> str:
    """The tree built at temperature 0 where `name` is asked for: one with nothing to sample there gives way to topk."""
    builder = find_tree(name)
    return (builder.greedy if builder else None) or name


def is_sampled(name: str) -> bool:
    """Whether trees of this name that are drafted twice at one state can differ."""
    builder = find_tree(name)
    return builder is not None and builder.sampled


__all__ = [
    "DraftProbs",
    "GeneratorDraw",
    "TREES",
    "TreeBatch",
    "TreeBuilder",
    "TreeSettings",
    "find_tree",
    "greedy_tree",
    "is_sampled",
    "root_only",
]
