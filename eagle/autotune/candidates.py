"""The draft trees that `tree="auto"` chooses among."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from eagle import command
from eagle.engine.distributions import is_greedy
from eagle.trees import TreeSettings, find_tree, greedy_tree

VERIFIER = "hsd"  # at temperature 0 it stands for "greedy", see `eagle.engine.plan.Plan.resolve`
BRANCHING = ("topk", "hybrid", "rsd")
KINDS = (*BRANCHING, "chain")
AUTO = "auto"


class Fit(NamedTuple):
    """What a hybrid builder is told of a head, as `TreeSettings` has it."""

    beta: float = TreeSettings().beta
    sharpness: float = TreeSettings().sharpness


class Candidate(NamedTuple):
    """A kind of tree with its size and shape, as `generate` takes them; nodes=1 is plain decoding."""

    tree: str
    nodes: int
    depth: int

    @property
    def settings(self) -> TreeSettings:
        return TreeSettings(self.nodes, self.depth)

    @property
    def is_fitted(self) -> bool:
        """Whether this kind of tree depends on the fit to a head."""
        builder = find_tree(self.tree)
        return builder is not None and builder.fitted

    def fitted(self, fit: Fit, levels: str) -> TreeSettings:
        """The settings with the head's fit and these levels, where the kind of tree has them."""
        return replace(self.settings, **fit._asdict(), levels=levels) if self.is_fitted else self.settings

    def variants(self, sharpness: float, levels: Iterable[str]) -> list[TreeSettings]:
        """The settings from which the head's beta is chosen, for each kind of levels."""
        return list(dict.fromkeys(self.fitted(Fit(beta, sharpness), one) for one in levels for beta in BETAS))


PLAIN = Candidate("none", 1, 1)
SHAPES = ((4, 2), (8, 3), (8, 4), (16, 4), (16, 6), (32, 4), (32, 6), (60, 7))  # nodes and depth of trees that branch
CHAINS = (1, 2, 3, 5, 7, 10)  # depths of a sampled path
BETAS = (0.3, 0.5, 0.7)  # of hybrid trees; see `TreeSettings`
CANDIDATES = (
    *(Candidate(tree, nodes, depth) for tree in BRANCHING for nodes, depth in SHAPES),
    *(Candidate("chain", depth + 1, depth) for depth in CHAINS),
)


def count_or_auto(text: str) -> int | str:
    """The value of a command's `--nodes`."""
    return text if text == AUTO else command.NODES(text)


def nearest(temperature: float, temperatures: Iterable[float]) -> float:
    """The nearest of `temperatures`, greedy and sampled ones apart where both are there."""
    known = list(temperatures)
    alike = [one for one in known if is_greedy(one) == is_greedy(temperature)]
    return min(alike or known, key=lambda one: abs(one - temperature))


def kinds_of(tree: str, temperature: float) -> tuple[str, ...]:
    """The kinds that `tree` leaves to choose from; at temperature 0 a hybrid tree is built as the top-k tree.

    Raises ValueError for a tree without candidates.
    """
    if tree != AUTO and tree not in KINDS:
        raise ValueError(f"nodes='auto' with tree={tree!r}: expected one of {', '.join((AUTO, *KINDS))}")
    kinds = KINDS if tree == AUTO else (tree,)
    return tuple(dict.fromkeys(map(greedy_tree, kinds) if is_greedy(temperature) else kinds))


def candidates_at(temperature: float) -> list[Candidate]:
    """The candidates that differ at a temperature."""
    kinds = kinds_of(AUTO, temperature)
    return [candidate for candidate in CANDIDATES if candidate.tree in kinds]
