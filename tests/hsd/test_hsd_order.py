"""HSD is not the best lossless rule on trees: visiting leaves last is lossless and accepts more (docs/verifiers.md)."""

from __future__ import annotations

import pytest
import torch

from hsd.audit.exact import examine
from hsd.audit.optimum import optimum
from hsd.audit.worlds import RECIPES, Children, Dice, Sketch, World, enumerate_drafts, random_world
from tests.reference.rule import by


def uneven(world: World, dice: Dice) -> Sketch:
    """A sampled child without children, then the likeliest token with a sampled path below it."""
    sketch, q = Sketch(), world.draft[()]
    top = int(q.argmax())
    rest = q.index_fill(0, torch.tensor([top]), 0)
    rest = rest / rest.sum()
    first: Children = [(dice.roll(rest), rest), (top, None)]
    *_, node = [sketch.add(0, token, probs) for token, probs in first]
    for _ in range(world.depth - 1):
        probs = world.draft[sketch.prefixes[node]]
        node = sketch.add(node, dice.roll(probs), probs)
    return sketch


def one_of_two(world: World, dice: Dice) -> Sketch:
    """Two children sampled without replacement, the first of them a leaf."""
    sketch = Sketch()
    *_, node = [sketch.add(0, token, probs) for token, probs in dice.roll_distinct(world.draft[()], 2)]
    probs = world.draft[sketch.prefixes[node]]
    sketch.add(node, dice.roll(probs), probs)
    return sketch


def steered(world: World, dice: Dice) -> Sketch:
    """Whether the first child has a child depends on what was drawn below the second, on the same level."""
    sketch = Sketch()
    first, second = sketch.add(0, 1), sketch.add(0, 0)
    probs = world.draft[(0,)]
    drawn = dice.roll(probs)
    sketch.add(second, drawn, probs)
    if drawn == 0:
        sketch.add(first, 0)
    return sketch


@pytest.mark.parametrize("recipe", [uneven, one_of_two])
@pytest.mark.parametrize("seed", range(6))
def test_leaves_last_is_lossless_and_accepts_no_less(recipe, seed) -> None:
    world = random_world("random", 3, 2, seed)
    drafts = enumerate_drafts(world, recipe)
    theirs, ours = (examine(world, drafts, by(name)) for name in ("hsd", "leaves_last"))
    assert ours.error < 1e-12
    assert ours.accepted >= theirs.accepted - 1e-12
    stops = [[by(name)(draft.tree, draft.target)[0] for name in ("hsd", "leaves_last")] for draft in drafts]
    assert max((one - other).abs().max() for one, other in stops) > 0.01  # another rule


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_it_is_hsd_where_all_siblings_are_alike(recipe) -> None:
    world = random_world("random", 3, 2, 0)
    for draft in enumerate_drafts(world, recipe):
        ours, theirs = (by(name)(draft.tree, draft.target)[0] for name in ("leaves_last", "hsd"))
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_an_order_that_depends_on_draws_below_is_lossy_where_hsd_is_not() -> None:
    half, one = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.5], [1.0, 0.0]))
    prefixes = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    world = World("steered", 2, 2, dict.fromkeys(prefixes, half) | {(0,): one}, dict.fromkeys(prefixes, half))
    drafts = enumerate_drafts(world, steered)
    assert examine(world, drafts, by("hsd")).error < 1e-12
    assert examine(world, drafts, by("leaves_last")).variation == pytest.approx(0.25)


def test_it_closes_most_of_the_way_to_the_optimum_where_a_leaf_was_sampled_first() -> None:
    pytest.importorskip("scipy")
    worlds = [random_world("random", 3, 3, seed) for seed in range(4)]
    drafts = [enumerate_drafts(world, uneven) for world in worlds]
    hsd, ours = (
        sum(examine(world, some, by(name)).accepted for world, some in zip(worlds, drafts))
        for name in ("hsd", "leaves_last")
    )
    best = sum(optimum([world], [some]) for world, some in zip(worlds, drafts))
    assert ours - hsd > 0.9 * (best - hsd) > 0.01


@pytest.mark.parametrize("recipe", ["hybrid", "without replacement"])
def test_what_a_verifier_cannot_see_is_not_what_keeps_it_from_the_optimum(recipe) -> None:
    """Models that differ behind one first token only, which not every tree has, and one verifier for both: no loss."""
    pytest.importorskip("scipy")
    one, other = random_world("random", 3, 2, 1), random_world("random", 3, 2, 2)
    place = (int(one.draft[()].argmin()),)
    target, draft = {**one.target, place: other.target[place]}, {**one.draft, place: other.draft[place]}
    changed = World("random", 3, 2, target, draft)
    worlds = [one, changed]
    drafts = [enumerate_drafts(world, RECIPES[recipe]) for world in worlds]
    trees = [{frozenset(draft.prefixes) for draft in some} for some in drafts]
    assert any(place not in tree for tree in trees[0] & trees[1])  # seen alike in both worlds
    alone = [optimum([world], [some]) for world, some in zip(worlds, drafts)]
    assert optimum(worlds, drafts) == pytest.approx(sum(alone) / 2, abs=1e-8)
