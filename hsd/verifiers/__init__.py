"""The verifiers by name. A plain dict: add an entry to add a verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hsd.outcome import Law
from hsd.verifiers.balance import Problem
from hsd.verifiers.block import block
from hsd.verifiers.greedy import greedy
from hsd.verifiers.hierarchical import hierarchical
from hsd.verifiers.published import published
from hsd.verifiers.token import token


class Verifier(NamedTuple):
    """law: what computes it.  lossless: whether it claims to keep the target's law (given its scope).
    scope: "tree", "path" (a branching tree is a ValueError) or "one-hot" (target laws at temperature 0)."""

    law: Callable[[Problem], Law]
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
    """Raises ValueError that lists the known names."""
    if name not in VERIFIERS:
        raise ValueError(f"verifier = {name!r}: expected one of {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[name]
