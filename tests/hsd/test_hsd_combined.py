"""Whether two lossless verifiers may be combined: a choice that depends on the draws is lossy, others are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hsd
from hsd.audit.__main__ import known
from hsd.audit.exact import Rule, examine
from hsd.audit.worlds import RECIPES, enumerate_drafts, random_world

TOKEN, HSD = known("token").rule, known("hsd").rule
FAMILIES = ["chain", "multi", "hybrid"]


def better(tree: hsd.DraftTree, p: Tensor) -> tuple[Tensor, Tensor]:
    """The verifier with the larger E[accepted] on the drafted tree."""
    depth = hsd.topology(tree.parents).depth
    return max((HSD(tree, p), TOKEN(tree, p)), key=lambda result: float((result[0] * depth).sum()))


def by_last_token(tree: hsd.DraftTree, p: Tensor) -> tuple[Tensor, Tensor]:
    """By a sampled token."""
    return (HSD if tree.tokens[-1] == 0 else TOKEN)(tree, p)


def by_root(tree: hsd.DraftTree, p: Tensor) -> tuple[Tensor, Tensor]:
    """By the target distribution at the root, which no draw changes."""
    return (HSD if p[0, 0] < p[0, 1] else TOKEN)(tree, p)


def by_coin(tree: hsd.DraftTree, p: Tensor) -> tuple[Tensor, Tensor]:
    """By a fair coin that is independent of the draws: the mixture of both."""
    (stop, residuals), (other, others) = HSD(tree, p), TOKEN(tree, p)
    both = (stop + other) / 2
    joint = (stop[:, None] * residuals + other[:, None] * others) / 2
    return both, joint / both.clamp(min=torch.finfo(both.dtype).tiny)[:, None]


def outcome(family: str, rule: Rule, seed: int = 7):
    world = random_world("random", 3, 2, seed)
    return examine(world, enumerate_drafts(world, RECIPES[family]), rule)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_better_verifier_of_each_tree_is_lossy(family: str) -> None:
    """It accepts more than either, and the emitted distribution is off by percents."""
    found = outcome(family, better)
    assert found.variation > 0.02
    assert found.accepted > max(outcome(family, TOKEN).accepted, outcome(family, HSD).accepted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", [by_root, by_coin])
def test_choices_that_no_draw_decides_are_lossless(family: str, rule: Rule) -> None:
    assert outcome(family, rule).error < 1e-12


def test_a_choice_by_a_sampled_token_is_lossy() -> None:
    assert outcome("chain", by_last_token).variation > 0.005
