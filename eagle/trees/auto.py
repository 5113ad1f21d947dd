"""The tree for a temperature and a budget: measured choices where the pair was tuned, the hybrid defaults elsewhere.

    python -m eval.tune_trees ... --output eagle/trees/tuned.json      writes the measured choices

`choose` looks at the settings and the temperature only, so shapes are known before a step. At temperature 0 it is
`topk`, or `chain` where a cell of temperature 0 says so. `nodes` and `depth` of the settings are limits; `width`,
`beta`, `growth` and `sharpness` are chosen here.
"""
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from eagle.drafters.base import Drafter
from eagle.trees import hybrid, paths, topk
from eagle.trees.base import Draw, Law, TreeBatch, TreeSettings

TUNED = Path(__file__).with_name("tuned.json")
KINDS = {"topk": (topk.build, topk.slots), "chain": (paths.build_chain, paths.chain_slots),
         "hybrid": (hybrid.build, hybrid.slots)}
GREEDY = 1e-5  # temperatures below this are 0, as in SamplingSettings


class Choice(NamedTuple):
    """A tree of `KINDS` and its settings."""

    tree: str
    settings: TreeSettings


@cache
def read_table(path: Path = TUNED) -> dict[str, Any]:
    """The measured choices: {"pair": {...}, "cells": [...]}; without a file, no cells."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pair": {}, "cells": []}


def pair_of(drafter: Drafter) -> dict[str, int]:
    """What tells this pair from others: the shape of its head. Empty for drafters without one."""
    config = getattr(getattr(drafter, "head", None), "config", None)
    names = ("hidden_size", "vocab_size", "draft_vocab_size") if config is not None else ()
    return {name: getattr(config, name) for name in names}


def choose(temperature: float, settings: TreeSettings, cells: list[dict[str, Any]] | None = None) -> Choice:
    """The measured choice nearest in temperature, then in the logarithm of the budget; without cells, `rule`.

    Temperature 0 and others are different problems: cells of one say nothing about the other.
    """
    greedy = temperature < GREEDY
    cells = [cell for cell in cells or [] if (cell["temperature"] < GREEDY) == greedy]
    if settings.nodes < 2 or (greedy and not cells):  # one node is the root alone
        return Choice("topk", settings)
    if not cells:
        return Choice("hybrid", rule(settings))
    cell = min(cells, key=lambda c: (abs(c["temperature"] - temperature), abs(math.log(c["nodes"] / settings.nodes))))
    own = {name: cell[name] for name in ("beta", "growth", "sharpness") if name in cell}
    depth = min(settings.depth, cell["depth"])
    return Choice(cell["tree"], replace(settings, depth=depth, width=None, **own))


def rule(settings: TreeSettings) -> TreeSettings:
    """The hybrid tree of a pair that was not tuned: the defaults, as deep as the budget allows."""
    return TreeSettings(settings.nodes, min(settings.depth, settings.nodes - 1))


def slots(settings: TreeSettings) -> int:
    """The most that any choice for any temperature gives to the drafter."""
    cells = read_table()["cells"]
    choices = [choose(0.0, settings), choose(1.0, settings)]
    choices += [choose(cell["temperature"], settings, cells) for cell in cells]
    return max(KINDS[tree][1](chosen) for tree, chosen in choices)


def build(drafter: Drafter, root: Tensor, logits: Tensor, settings: TreeSettings, law: Law, draw: Draw) -> TreeBatch:
    """Grow the chosen tree. A law without settings is taken to be at temperature 1."""
    table = read_table()
    cells = table["cells"] if table["pair"] == pair_of(drafter) else None
    temperature = getattr(getattr(law, "settings", None), "temperature", 1.0)
    tree, chosen = choose(temperature, settings, cells)
    return KINDS[tree][0](drafter, root, logits, chosen, law, draw)
