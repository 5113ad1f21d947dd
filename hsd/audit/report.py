"""The audit's rows, its table and its picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hsd.audit.exact import Rule, coverage_bound, examine
from hsd.audit.optimum import optimum
from hsd.audit.worlds import RECIPES, WORLDS, enumerate_drafts, random_world

TOLERANCE = 1e-12


@dataclass(frozen=True)
class Subject:
    """A verifier under audit. scope as in hsd.verifiers: "tree", "path" or "one-hot"."""

    name: str
    rule: Rule
    lossless: bool = True
    scope: str = "tree"

    def applies(self, recipe: str, world: str) -> bool:
        """Whether the verifier's scope covers such trees."""
        suits = {"tree": True, "path": recipe == "chain", "one-hot": world == "one-hot p"}
        return suits[self.scope]


@dataclass(frozen=True)
class Row:
    """One verifier on one family. best and share are None where the linear program is too large."""

    family: str
    verifier: str
    claims_lossless: bool
    error: float
    variation: float
    accepted: float
    bound: float
    best: float | None
    share: float | None

    @property
    def verdict(self) -> str:
        """What the row shows, in words."""
        if self.error <= TOLERANCE:
            return "lossless" if self.claims_lossless else "exact here"
        return "NOT LOSSLESS" if self.claims_lossless else "lossy, as stated"

    @property
    def failed(self) -> bool:
        """Whether a verifier that claims to be lossless is not."""
        return self.claims_lossless and not self.error <= TOLERANCE


@dataclass(frozen=True)
class Family:
    """A recipe in a kind of world."""

    recipe: str
    world: str
    vocabulary: int = 3
    depth: int = 2

    @property
    def name(self) -> str:
        """What the tables call it."""
        deep = f", depth {self.depth}" if self.depth != 2 else ""
        return f"{self.recipe}{deep}" + (f" ({self.world})" if self.world != "random" else "")


def families(which: str) -> list[Family]:
    """Of "standard": every recipe in a random world, the edge cases on three; of "quick" fewer, of "full" more."""
    if which == "quick":
        return [
            Family("top-k", "random"),
            Family("chain", "random", depth=3),
            Family("multi", "random", depth=1),
            Family("hybrid", "one-hot p"),
        ]
    if which == "full":
        return [Family(recipe, world) for world in WORLDS for recipe in RECIPES]
    edges = [
        Family(recipe, world, vocabulary=4 if world == "zeros" else 3)
        for world in WORLDS
        if world != "random"
        for recipe in ("chain", "multi", "hybrid")
    ]
    return [*(Family(recipe, "random") for recipe in RECIPES), Family("chain", "random", depth=3), *edges]


def audit(subjects: list[Subject], selected: list[Family], seed: int) -> Iterator[Row]:
    """One row per family and applicable verifier; one that raises ValueError is skipped there."""
    for family in selected:
        world = random_world(family.world, family.vocabulary, family.depth, seed, **WORLDS[family.world])
        drafts = enumerate_drafts(world, RECIPES[family.recipe])
        bound, best = coverage_bound(world, drafts), optimum([world], [drafts])
        outcomes = {}
        for subject in subjects:
            if subject.applies(family.recipe, family.world):
                try:
                    outcomes[subject] = examine(world, drafts, subject.rule)
                except ValueError as refusal:
                    print(f"{subject.name} refuses {family.name}: {refusal}")
        base = next((o.accepted for s, o in outcomes.items() if s.name == "token"), None)
        for subject, outcome in outcomes.items():
            share = _share(outcome.accepted, base, best)
            yield Row(family.name, subject.name, subject.lossless, *outcome, bound, best, share)


def _share(accepted: float, base: float | None, best: float | None) -> float | None:
    """Part of the way from token-wise to the optimum; None where there is no way to go."""
    if base is None or best is None or best - base < 1e-9:
        return None
    return (accepted - base) / (best - base)


HEADER = """\
| family | verifier | error | TV | E[accepted] | optimum | bound | share of gain | verdict |
|---|---|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    """One line of the Markdown table under HEADER."""
    best = "-" if row.best is None else f"{row.best:.4f}"
    share = "-" if row.share is None else f"{row.share:.0%}"
    cells = (
        row.family,
        row.verifier,
        f"{row.error:.0e}",
        f"{row.variation:.0e}",
        f"{row.accepted:.4f}",
        best,
        f"{row.bound:.4f}",
        share,
        row.verdict,
    )
    return f"| {' | '.join(cells)} |"


def plot(rows: list[Row], path: str) -> None:
    """E[accepted] by family and verifier, with the optimum and the bound as marks. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.family for row in rows))
    verifiers = list(dict.fromkeys(row.verifier for row in rows))
    figure, axes = plt.subplots(figsize=(1.1 * len(names) + 2, 5), layout="constrained")
    width = 0.8 / len(verifiers)
    for k, verifier in enumerate(verifiers):
        mine = [row for row in rows if row.verifier == verifier]
        lossy = any(not row.claims_lossless or row.failed for row in mine)
        where = [names.index(row.family) + (k + 0.5) * width - 0.4 for row in mine]
        axes.bar(
            where,
            [row.accepted for row in mine],
            width,
            hatch="///" if lossy else None,
            label=f"{verifier} (lossy)" if lossy else verifier,
        )
    for attribute, label, style in (("best", "optimum", "black"), ("bound", "bound", "grey")):
        marks = {row.family: getattr(row, attribute) for row in rows if getattr(row, attribute) is not None}
        where = [names.index(name) for name in marks]
        axes.hlines(
            list(marks.values()),
            [x - 0.42 for x in where],
            [x + 0.42 for x in where],
            colors=style,
            linestyles="solid" if attribute == "best" else "dotted",
            label=label,
        )
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_ylabel("E[accepted] (draft tokens per step)")
    figure.legend(loc="outside upper center", ncols=8, fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)
