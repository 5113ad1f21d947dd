"""The best that any lossless verifier can do in toy worlds, by linear programming.

A verifier is a distribution g(v, y | T) >= 0 of the stopping node v and the bonus token y, given the drafted tree T.
With s the emitted tokens path(v) y, and E(s) = sum over T of Pr(T) g(s | T),

    maximize    sum over T of Pr(T) sum over v, y of g(v, y | T) depth(v)
    subject to  sum over v, y of g(v, y | T) = 1                                for every T
                sum over prefixes s of z of E(s) / P(s) = 1                     for every z with P(z) > 0
                E(s) = 0                                                        where P(s) = 0

The second line is L(z) = P(z) of hsd/audit/exact.py divided by P(z). Every lossless verifier that depends on the
tree and the two models is a feasible point, so the value is a ceiling. Only the set of drafted prefixes
matters: trees with the same set are merged.

A real verifier sees the two models' probabilities at drafted nodes alone. Given several worlds, g may depend on T and
on what the models say at the nodes of T, its *sight*: worlds that agree there share the variables, the second and third
line hold in every world, and the mean over the worlds is maximized. That is a ceiling, too: for verifiers that see no
more than this.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product

from hsd.audit.exact import path_probability
from hsd.audit.worlds import Draft, Prefix, World

LIMIT = 60_000
"""More variables than this and no optimum is computed: it would take minutes."""

Tree = frozenset[Prefix]
Sight = tuple[Tree, bytes]  # a tree, and both models' probabilities at its nodes


def optimum(worlds: Sequence[World], drafts: Sequence[list[Draft]]) -> float | None:
    """E[accepted] of the best verifier that is lossless in all of `worlds`, its mean over them.

    `drafts` has the outcomes of drafting in each world. None without scipy, or where the program is too large.
    """
    chances = [_chances(world, outcomes) for world, outcomes in zip(worlds, drafts, strict=True)]
    seen: Counter[Sight] = Counter()
    for one in chances:
        seen.update(one)  # adds up the probabilities
    variables = [
        (sight, prefix + (y,)) for sight in seen for prefix in sorted(sight[0]) for y in range(worlds[0].vocabulary)
    ]
    if len(variables) > LIMIT:
        return None
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError:
        return None

    variables = [
        (sight, emitted)
        for sight, emitted in variables
        if all(path_probability(world, emitted) > 0 for world, one in zip(worlds, chances) if sight in one)
    ]
    entries, height = _constraints(worlds, chances, list(seen), variables)
    rows, columns, values = zip(*entries)
    matrix = coo_array((values, (rows, columns)), shape=(height, len(variables))).tocsr()
    gain = [seen[sight] / len(worlds) * (len(s) - 1) for sight, s in variables]
    for method in ("highs-ds", "highs-ipm"):
        result = linprog([-g for g in gain], A_eq=matrix, b_eq=[1.0] * height, method=method)
        if result.status == 0:
            return -float(result.fun)
    return None


def _chances(world: World, drafts: list[Draft]) -> dict[Sight, float]:
    """What can be seen in a world, with its probability."""
    found: dict[Sight, float] = defaultdict(float)
    for draft in drafts:
        tree = frozenset(draft.prefixes)
        models = [model[prefix].numpy().tobytes() for prefix in sorted(tree) for model in (world.target, world.draft)]
        found[tree, b"".join(models)] += draft.probability
    return found


def _constraints(
    worlds: Sequence[World],
    chances: Sequence[dict[Sight, float]],
    sights: list[Sight],
    variables: list[tuple[Sight, Prefix]],
) -> tuple[list[tuple[int, int, float]], int]:
    """(row, column, coefficient), and the number of rows: first the sights, then every world's sequences."""
    row_of_sight = {sight: row for row, sight in enumerate(sights)}
    height = len(sights)
    rows_of: list[dict[Prefix, int]] = []
    for world in worlds:
        sequences = product(range(world.vocabulary), repeat=world.depth + 1)
        possible = [z for z in sequences if path_probability(world, z) > 0]
        rows_of.append({z: height + i for i, z in enumerate(possible)})
        height += len(possible)
    entries = []
    for column, (sight, emitted) in enumerate(variables):
        entries.append((row_of_sight[sight], column, 1.0))
        for world, one, row_of in zip(worlds, chances, rows_of):
            if sight in one:
                share = one[sight] / path_probability(world, emitted)
                rest = product(range(world.vocabulary), repeat=world.depth + 1 - len(emitted))
                entries += [(row_of[z], column, share) for r in rest if (z := emitted + r) in row_of]
    return entries, height
