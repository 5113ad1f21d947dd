"""The verifiers by name. A plain dict: add an entry to add a verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hsd.outcome import StopDistribution
from hsd.verifiers.block import block
from hsd.verifiers.greedy import greedy
from hsd.verifiers.hierarchical import hierarchical
from hsd.verifiers.inputs import VerifierInput
from hsd.verifiers.published import published
from hsd.verifiers.token import token


class Verifier(NamedTuple):
    """A verifier and its claims.

    stop_distribution     VerifierInput (a batch of trees with target distributions) -> StopDistribution
    lossless  whether it claims to preserve the target distribution (given its scope)
    scope     "tree", "path" (a branching tree is a ValueError) or "one-hot" (target distributions at temperature 0)
    """

    stop_distribution: Callable[[VerifierInput], StopDistribution]
    lossless: bool
    scope: str


VERIFIERS: dict[str, Verifier] = {
    "hsd": Verifier(hierarchical, lossless=True, scope="tree"),
    "token": Verifier(token, lossless=True, scope="tree"),
    "block": Verifier(block, lossless=True, scope="path"),
    "greedy": Verifier(greedy, lossless=True, scope="one-hot"),
    "published": Verifier(published, lossless=False, scope="path"),
}


def find_verifier(name: str) -> Verifier:
    """The entry of VERIFIERS. Raises ValueError that lists the known names."""
    if name not in VERIFIERS:
        raise ValueError(f"verifier = {name!r}: expected one of {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[name]
