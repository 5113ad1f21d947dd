"""Losslessness by exact enumeration: all drafts, all stops, all bonus tokens. No sampling anywhere."""

import pytest
import torch

import hsd
from hsd.audit.__main__ import known
from hsd.audit.exact import coverage_bound, examine, path_probability
from hsd.audit.worlds import RECIPES, WORLDS, Dice, Sketch, World, enumerate_drafts, random_world

SLOW = {"overlapping"}


def pruned_by_token(world: World, dice: Dice) -> Sketch:
    """Forbidden: the sampled child is dropped when its token looks unlikely, so its distribution is no longer d."""
    sketch, q = Sketch(), world.draft[()]
    token = dice.roll(q)
    if q[token] == q.max():
        sketch.add(0, token, q)
    return sketch


def pruned_by_slot(world: World, dice: Dice) -> Sketch:
    """Allowed: top-k children come and go with anything, even with the token that was sampled beside them."""
    sketch, q = Sketch(), world.draft[()]
    token = dice.roll(q)
    child = sketch.add(0, token, q)
    for x in range(token):
        sketch.add(0, x)
    if token != 1:
        below = world.draft[(token,)]
        sketch.add(child, dice.roll(below), below)
    return sketch


@pytest.mark.parametrize("world_name", WORLDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_joint_distribution_is_the_targets(recipe: str, world_name: str) -> None:
    world = random_world(world_name, 3, 2, seed=23, **WORLDS[world_name])
    if recipe in SLOW and world_name in ("p == q", "one-hot p"):
        pytest.skip("seconds each: the two general worlds say more")
    drafts = enumerate_drafts(world, RECIPES[recipe])
    for verifier in ("hsd", "token", "block", "greedy"):
        subject = known(verifier)
        if subject.applies(recipe, world_name):
            assert examine(world, drafts, subject.rule).error < 1e-12, verifier


@pytest.mark.parametrize("recipe", ["top-k", "chain", "multi"])
def test_deeper_drafts(recipe: str) -> None:
    world = random_world("binary", 2, 3, seed=5, zeros=False)
    drafts = enumerate_drafts(world, RECIPES[recipe])
    for verifier in ("hsd", "token"):
        assert examine(world, drafts, known(verifier).rule).error < 1e-12


@pytest.mark.parametrize("recipe", RECIPES)
def test_hsd_accepts_at_least_as_much_as_token_wise(recipe: str) -> None:
    for seed in range({"overlapping": 1, "without replacement": 2}.get(recipe, 6)):
        world = random_world("random", 3, 2, seed, spread=(0.5, 1.0, 2.0)[seed % 3])
        drafts = enumerate_drafts(world, RECIPES[recipe])
        accepted = {
            name: sum(
                draft.probability * float(hsd.stopping_law(draft.tree, draft.target, name).expected_accepted)
                for draft in drafts
            )
            for name in ("hsd", "token")
        }
        bound = coverage_bound(world, drafts)
        assert accepted["token"] - 1e-12 <= accepted["hsd"] <= bound + 1e-12
        if recipe == "top-k":
            assert accepted["hsd"] == pytest.approx(bound, abs=1e-12)
            assert accepted["token"] == pytest.approx(bound, abs=1e-12)


def test_on_a_topk_tree_every_node_is_the_stop_as_often_as_the_target_leaves_the_tree_there() -> None:
    """stop(v) = p(v) (1 - sum of p over its children), for hsd and token-wise alike."""
    world = random_world("random", 4, 3, seed=2)
    (draft,) = enumerate_drafts(world, RECIPES["top-k"])
    reach = torch.tensor([path_probability(world, prefix) for prefix in draft.prefixes], dtype=torch.float64)
    wanted = reach.clone().scatter_add(0, draft.tree.parents[1:], -reach[1:])
    for verifier in ("hsd", "token"):
        stop = hsd.stopping_law(draft.tree, draft.target, verifier).stop
        assert torch.allclose(stop, wanted, rtol=0, atol=1e-12)


def test_the_published_rule_is_lossy() -> None:
    world = random_world("random", 3, 3, seed=7)
    outcome = examine(world, enumerate_drafts(world, RECIPES["chain"]), known("published").rule)
    assert outcome.variation > 0.01


def test_the_textbook_example() -> None:
    """Sun et al., section 2: p = (1/3, 2/3), q = (2/3, 1/3), two tokens: token-wise 10/9, block 11/9."""
    p, q = (torch.tensor(law, dtype=torch.float64) / 3 for law in ((1, 2), (2, 1)))
    prefixes = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    world = World("textbook", 2, 2, dict.fromkeys(prefixes, p), dict.fromkeys(prefixes, q))
    drafts = enumerate_drafts(world, RECIPES["chain"])
    accepted = {name: examine(world, drafts, known(name).rule).accepted for name in ("token", "block", "hsd")}
    assert accepted == pytest.approx({"token": 10 / 9, "block": 11 / 9, "hsd": 11 / 9}, abs=1e-12)


def test_what_a_tree_builder_may_do() -> None:
    world = random_world("random", 3, 2, seed=9)
    for verifier in ("hsd", "token"):
        rule = known(verifier).rule
        assert examine(world, enumerate_drafts(world, pruned_by_slot), rule).error < 1e-12
        assert examine(world, enumerate_drafts(world, pruned_by_token), rule).variation > 0.01


def test_a_sampled_child_is_better_verified_first() -> None:
    """P(accept at v) = p(S) + sum of min(p, q~) outside S if first; with (1 - p(S)) q~ for q~ if last."""
    world = random_world("random", 5, 1, seed=1)
    p, q = world.target[()], world.draft[()]
    inside = torch.zeros(5, dtype=torch.bool).index_fill(0, q.argmax(), True)
    rest = q.masked_fill(inside, 0)
    rest = rest / rest.sum()
    kept = p[inside].sum()
    for recipe, scale in (("hybrid", 1), ("hybrid, sampled last", 1 - kept)):
        wanted = kept + torch.minimum(p, scale * rest)[~inside].sum()
        drafts = enumerate_drafts(world, RECIPES[recipe])
        for verifier in ("hsd", "token"):
            accepted = examine(world, drafts, known(verifier).rule).accepted
            assert accepted == pytest.approx(float(wanted), abs=1e-12)
