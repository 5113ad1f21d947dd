"""The best that any lossless verifier can do in a toy world, by linear programming.

A verifier is a distribution g(v, y | T) >= 0 of the stopping node v and the bonus token y, given the drafted tree T.
With s the emitted tokens path(v) y, and E(s) = sum over T of Pr(T) g(s | T),

    maximize    sum over T of Pr(T) sum over v, y of g(v, y | T) depth(v)
    subject to  sum over v, y of g(v, y | T) = 1                                for every T
                sum over prefixes s of z of E(s) / P(s) = 1                     for every z with P(z) > 0
                E(s) = 0                                                        where P(s) = 0

The second line is L(z) = P(z) of hsd/audit/exact.py divided by P(z). Every lossless verifier that depends on the
tree and the two models is a feasible point, so the value is a ceiling. Only the set of drafted prefixes
matters: trees with the same set are merged.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product

from hsd.audit.exact import path_probability
from hsd.audit.worlds import Draft, Prefix, World

LIMIT = 60_000
"""More variables than this and no optimum is computed: it would take minutes."""


def optimum(world: World, drafts: list[Draft]) -> float | None:
    """E[accepted] of the best lossless verifier; None without scipy, or where the program is too large."""
    trees: dict[frozenset[Prefix], float] = defaultdict(float)
    for draft in drafts:
        trees[frozenset(draft.prefixes)] += draft.probability
    chances = list(trees.values())
    variables = [
        (t, prefix + (y,))
        for t, prefixes in enumerate(trees)
        for prefix in sorted(prefixes)
        for y in range(world.vocabulary)
    ]
    if len(variables) > LIMIT:
        return None
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError:
        return None

    variables = [(t, s) for t, s in variables if path_probability(world, s) > 0]
    sequences = [z for z in product(range(world.vocabulary), repeat=world.depth + 1) if path_probability(world, z) > 0]
    rows, columns, values = zip(*_entries(world, chances, variables, sequences))
    height = len(chances) + len(sequences)
    matrix = coo_array((values, (rows, columns)), shape=(height, len(variables))).tocsr()
    gain = [chances[t] * (len(s) - 1) for t, s in variables]
    for method in ("highs-ds", "highs-ipm"):
        result = linprog([-g for g in gain], A_eq=matrix, b_eq=[1.0] * height, method=method)
        if result.status == 0:
            return -float(result.fun)
    return None


def _entries(
    world: World, chances: list[float], variables: list[tuple[int, Prefix]], sequences: list[Prefix]
) -> list[tuple[int, int, float]]:
    """(row, column, coefficient) of the constraints: first the trees, then the sequences."""
    row_of = {z: len(chances) + i for i, z in enumerate(sequences)}
    entries = []
    for column, (tree, emitted) in enumerate(variables):
        entries.append((tree, column, 1.0))
        share = chances[tree] / path_probability(world, emitted)
        for rest in product(range(world.vocabulary), repeat=world.depth + 1 - len(emitted)):
            if emitted + rest in row_of:
                entries.append((row_of[emitted + rest], column, share))
    return entries
