"""`Plan`: how a session drafts and verifies, with the tree builder and the verifier looked up once."""

from dataclasses import dataclass

from eagle.drafters import Drafter
from eagle.engine.distributions import GREEDY_BELOW
from eagle.trees import TreeBuilder, TreeSettings, find_tree, greedy_tree
from hsd.verifiers import Verifier, find_verifier


@dataclass(frozen=True)
class Plan:
    """The fixed choices of a session; equal plans decode alike, so a plan is part of the key of recorded steps.

    tree       name of the builder, for messages
    builder    None for plain decoding
    settings   size and shape of the tree
    verifier   an entry of `hsd.VERIFIERS`
    """

    tree: str
    builder: TreeBuilder | None
    settings: TreeSettings
    verifier: Verifier

    @classmethod
    def resolve(cls, tree: str, verifier: str, settings: TreeSettings, temperature: float = 1.0) -> "Plan":
        """A plan from names, for rows at this temperature (any other above 0 is the same).

        At temperature 0 every lossless verifier accepts what "greedy" accepts, so that one is used; a sampled tree has
        nothing to sample there, so "hybrid" and "rsd" are built as "topk".

        Raises ValueError for an unknown tree or verifier, for "greedy" at a temperature above 0 (it would emit the
        target's most likely token instead of a sample), and for a verifier of single paths on a tree that branches.
        """
        found = find_verifier(verifier)
        builder = find_tree(tree)
        if settings.nodes == 1:
            builder = None  # the root alone is plain decoding
        if temperature < GREEDY_BELOW:
            found, tree = find_verifier("greedy"), greedy_tree(tree)
            builder = builder and find_tree(tree)
        elif found.scope == "one-hot":
            raise ValueError(
                f"verifier={verifier!r} at temperature {temperature:g}: it keeps the most likely token "
                "and is lossless at temperature 0 only; use verifier='hsd' or 'token'"
            )
        elif found.scope == "path" and builder is not None and not builder.single_path:
            raise ValueError(
                f"verifier={verifier!r} verifies one path and tree={tree!r} branches: use tree='chain', or "
                "verifier='hsd' or 'token'"
            )
        if builder is not None:
            builder.grown(settings)  # raises where the settings do not fit the tree
        return cls(tree, builder, settings, found)

    @property
    def greedy(self) -> bool:
        """Whether it is for temperature 0 only."""
        return self.verifier.scope == "one-hot"

    @property
    def depth(self) -> int:
        """Levels below the root: at most this many draft tokens are accepted in a step."""
        return self.settings.depth if self.builder else 0

    @property
    def nodes(self) -> int:
        """Rows that the target scores in a step, at most."""
        return self.settings.nodes if self.builder else 1

    def drafter_of(self, drafter: Drafter | None) -> Drafter | None:
        """What drafts under this plan: the model's drafter, None for plain decoding.

        Raises ValueError where a tree is planned and there is no drafter.
        """
        if self.builder is None:
            return None
        if drafter is None:
            raise ValueError(f"tree={self.tree!r} needs a drafter: load with ea_model_path or draft_model_path")
        return drafter

    def grown_by(self, rows: int) -> int:
        """Nodes given to the drafter in a step of this many rows, at most. A level is as wide as its widest row."""
        if self.builder is None:
            return 0
        widest = min(rows, max(self.settings.depth - 1, 1)) if self.builder.ragged else 1
        return widest * self.builder.grown(self.settings)

    @property
    def draws(self) -> int:
        """Numbers that a step's tree is sampled with, at most."""
        return self.builder.draws(self.settings) if self.builder else 0
