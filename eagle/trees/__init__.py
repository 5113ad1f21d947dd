"""Tree builders by name. Each grows one tree per batch row; see `eagle.trees.base` for the rule they keep."""

from collections.abc import Callable
from typing import NamedTuple

from eagle.trees import hybrid, paths, rsd, topk
from eagle.trees.base import LEVELS, Draft, TreeBatch, TreeSettings, root_only
from eagle.trees.grown import grown
from eagle.trees.hybrid import levels_on


class TreeBuilder(NamedTuple):
    """How one kind of tree is grown.

    build          (draft: Draft, settings: TreeSettings) -> TreeBatch
    grown          settings -> nodes given to the drafter, at most. Raises ValueError where settings do not fit the tree
    uniforms       settings -> numbers that its children are sampled with, at most; None: nothing is sampled
    single_path    whether every tree is one path, whatever the settings
    greedy         the tree built in its place at temperature 0; None: itself
    fitted         whether it is fitted to a head by its calibration (beta, sharpness)
    ragged         whether levels may have other sizes in every row of a batch
    """

    build: Callable[[Draft, TreeSettings], TreeBatch]
    grown: Callable[[TreeSettings], int]
    uniforms: Callable[[TreeSettings], int] | None = None
    single_path: bool = False
    greedy: str | None = None
    fitted: bool = False
    ragged: bool = False

    def draws(self, settings: TreeSettings) -> int:
        """Numbers that one tree is sampled with, at most."""
        return self.uniforms(settings) if self.uniforms else 0


TREES: dict[str, TreeBuilder | None] = {
    "none": None,  # plain decoding: the root alone
    "topk": TreeBuilder(topk.build, topk.grown),
    "chain": TreeBuilder(paths.build_chain, paths.chain_grown, paths.chain_uniforms, single_path=True),
    "multi": TreeBuilder(paths.build_multi, paths.multi_grown, paths.multi_uniforms),
    "rsd": TreeBuilder(rsd.build, grown, rsd.uniforms, greedy="topk"),
    "hybrid": TreeBuilder(hybrid.build, grown, hybrid.uniforms, greedy="topk", fitted=True, ragged=True),
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
    return builder is not None and builder.uniforms is not None


__all__ = [
    "Draft",
    "LEVELS",
    "TREES",
    "TreeBatch",
    "TreeBuilder",
    "TreeSettings",
    "find_tree",
    "greedy_tree",
    "is_sampled",
    "levels_on",
    "root_only",
]
