"""A plan looks names up once and refuses what cannot be exact before anything is decoded."""

import pytest

from eagle.engine.plan import Plan
from eagle.trees import TREES, TreeSettings, find_tree
from hsd import VERIFIERS

SAMPLED, GREEDY = 1.0, 0.0


@pytest.mark.parametrize(
    ("tree", "verifier", "settings", "words"),
    [
        ("hybrid", "block", TreeSettings(), ["block", "hybrid", "chain"]),
        ("topk", "published", TreeSettings(), ["published", "topk", "one path"]),
        ("multi", "block", TreeSettings(), ["block", "multi"]),
        ("hybrid", "greedy", TreeSettings(), ["greedy", "temperature 1", "temperature 0 only"]),
        ("none", "greedy", TreeSettings(), ["greedy", "temperature"]),
        ("bush", "hsd", TreeSettings(), ["bush", "known", "hybrid"]),
        ("hybrid", "best", TreeSettings(), ["best", "hsd"]),
        ("multi", "hsd", TreeSettings(10, 4, 3), ["nodes=10", "3 paths of 4", "13"]),
    ],
)
def test_refusals_name_the_value_and_the_remedy(tree, verifier, settings, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        Plan.resolve(tree, verifier, settings, SAMPLED)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("tree", ["topk", "chain", "multi", "rsd", "hybrid"])
@pytest.mark.parametrize("verifier", ["hsd", "token", "greedy"])
def test_temperature_0_is_greedy_and_trees_with_nothing_to_sample_are_topk(tree, verifier):
    plan = Plan.resolve(tree, verifier, TreeSettings(), GREEDY)
    assert plan.verifier is VERIFIERS["greedy"] and plan.builder is find_tree(
        "topk" if tree in ("hybrid", "rsd") else tree
    )


@pytest.mark.parametrize("tree", TREES)
def test_one_node_is_plain_decoding(tree):
    plan = Plan.resolve(tree, "hsd", TreeSettings(nodes=1), SAMPLED)
    assert plan.builder is None and (plan.depth, plan.nodes) == (0, 1)


def test_equal_plans_share_recorded_steps():
    one, two = (Plan.resolve("hybrid", "hsd", TreeSettings(), temperature) for temperature in (0.7, 1.3))
    assert one == two and hash(one) == hash(two)
    assert one != Plan.resolve("hybrid", "token", TreeSettings(), SAMPLED)
