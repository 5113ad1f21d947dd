"""The vectorised verifiers equal the scalar ones written from the papers, on arbitrary trees."""

import pytest
import torch

import hsd
from hsd.audit.worlds import RECIPES, enumerate_drafts, random_world
from tests.hsd.random_trees import random_tree, residuals
from tests.reference import scalar

SHAPES = {
    "mixed": {},
    "all sampled": {"sampled": 1.0},
    "all top-k": {"sampled": 0.0},
    "draft vocabulary": {"support": 4, "sampled": 0.7},
    "zeros": {"keep": 3, "sampled": 0.7},
    "p close to d": {"like_target": 1.0, "sampled": 0.8},
    "path": {"chain": True, "sampled": 0.8},
    "path of a draft vocabulary": {"chain": True, "support": 4},
    "root only": {"nodes": 1},
}


def assert_same_distribution(
    verifier: str, tree: hsd.DraftTree, target: torch.Tensor, reference: str | None = None
) -> None:
    law = hsd.stopping_law(tree, target, verifier)
    stop, residual = scalar.exact_distribution(reference or verifier, scalar.from_draft(tree, target))
    assert torch.allclose(law.stop, torch.tensor(stop, dtype=torch.float64), rtol=0, atol=1e-12)
    emitted = law.stop[:, None] * residuals(law, len(tree))
    for node, row in enumerate(residual):
        if row is not None:
            wanted = stop[node] * torch.tensor(row, dtype=torch.float64)
            assert torch.allclose(emitted[node], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_equals_the_scalar_reference(shape: str, verifier: str) -> None:
    for seed in range(25):
        assert_same_distribution(verifier, *random_tree(seed, **SHAPES[shape]))


@pytest.mark.parametrize("shape", ["path", "path of a draft vocabulary", "root only"])
@pytest.mark.parametrize("verifier", ["block", "published"])
def test_path_verifiers_equal_the_scalar_reference(shape: str, verifier: str) -> None:
    for seed in range(25):
        assert_same_distribution(verifier, *random_tree(seed, **SHAPES[shape]))


def test_many_sampled_siblings_in_rounds() -> None:
    """Seven draws at one node among top-k ones, repeats included."""
    for seed in range(10):
        tree, target = random_tree(seed, nodes=12, vocabulary=4, sampled=0.6)
        flat = torch.where(torch.arange(12) > 0, 0, -1)
        # A common parent: every node becomes a child of the root.
        assert_same_distribution("hsd", hsd.DraftTree(tree.tokens, flat, tree.proposal_rows, tree.proposals), target)
        assert_same_distribution("token", hsd.DraftTree(tree.tokens, flat, tree.proposal_rows, tree.proposals), target)


def test_greedy_is_hsd_and_token_on_one_hot_targets() -> None:
    """Where no siblings repeat a token; where they do, greedy accepts at least as much."""
    equal = 0
    for seed in range(60):
        tree, target = random_tree(seed, vocabulary=5, nodes=5 + seed % 6)
        target = torch.nn.functional.one_hot(target.argmax(-1), 5).double()
        pairs = list(zip(tree.parents.tolist(), tree.tokens.tolist()))
        laws = {name: hsd.stopping_law(tree, target, name) for name in ("greedy", "hsd", "token")}
        node = laws["greedy"].stop.argmax()
        assert torch.equal(laws["greedy"].residual(node), target[node])
        if len(set(pairs)) == len(pairs):
            equal += 1
            assert all(abs(law.stop[node] - 1) < 1e-12 for law in laws.values())
        else:
            most = laws["greedy"].expected_accepted + 1e-12
            assert all(law.expected_accepted <= most for law in laws.values())
    assert equal > 3


def test_greedy_finds_the_longest_path_among_repeats() -> None:
    """Two sampled siblings hold the right token; only the second has the right child."""
    tree = hsd.DraftTree(
        torch.tensor([0, 1, 1, 2]), torch.tensor([-1, 0, 0, 2]), torch.tensor([-1, 0, 0, -1]), torch.full((1, 3), 1 / 3)
    )
    target = torch.eye(3)[[1, 2, 2, 0]]
    assert hsd.verify(tree, target, "greedy").path.tolist() == [0, 2, 3]
    assert hsd.verify(tree, target, "hsd").path.tolist() == [0, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_hsd_is_traversal_verification(shape: str) -> None:
    """Same stopping distribution and same residuals on every tree, not only on average over drafts."""
    for seed in range(8):
        assert_same_distribution("hsd", *random_tree(seed, **SHAPES[shape]), reference="traversal")


@pytest.mark.parametrize("recipe", ["multi", "without replacement", "hybrid", "overlapping"])
def test_hsd_is_traversal_verification_on_every_draft_of_a_world(recipe: str) -> None:
    world = random_world("random", 3, 2, seed=7)
    drafts = enumerate_drafts(world, RECIPES[recipe])
    assert len(drafts) > 3
    for draft in drafts[:: max(1, len(drafts) // 20)]:
        assert_same_distribution("hsd", draft.tree, draft.target, reference="traversal")
