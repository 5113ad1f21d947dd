"""Tree builders by name. Each grows one tree per batch row; see `eagle.trees.base` for the rule they keep."""

from collections.abc import Callable
from typing import NamedTuple

from eagle.trees import hybrid, paths, topk
from eagle.trees.base import DraftProbs, TreeBatch, TreeSettings, root_only


class TreeBuilder(NamedTuple):
    """How one kind of tree is grown.

    build          (drafter, root Int64[B], logits [B, Vd] after it, settings, probs: DraftProbs, draw) -> TreeBatch
    slots          settings -> number of nodes given to the drafter
    single_path    whether every tree is one path, whatever the settings
    """

    build: Callable[..., TreeBatch]
    slots: Callable[[TreeSettings], int]
    single_path: bool = False


TREES: dict[str, TreeBuilder | None] = {
    "none": None,  # plain decoding: the root alone
    "topk": TreeBuilder(topk.build, topk.slots),
    "chain": TreeBuilder(paths.build_chain, paths.chain_slots, single_path=True),
    "multi": TreeBuilder(paths.build_multi, paths.multi_slots),
    "hybrid": TreeBuilder(hybrid.build, hybrid.slots),
}


def find_tree(name: str) -> TreeBuilder | None:
    if name not in TREES:
        raise ValueError(f"tree {name!r} is not known; known: {', '.join(TREES)}")
    return TREES[name]


__all__ = ["DraftProbs", "TREES", "TreeBatch", "TreeBuilder", "TreeSettings", "find_tree", "root_only"]
