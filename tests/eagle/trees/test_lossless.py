"""Every outcome of the *real* tree builders, weighed and verified: the emitted joint law is the target's."""

import dataclasses

import pytest
import torch

import hsd
from eagle.trees import TreeSettings, native_level
from tests.eagle.toy import MoodyTable, Table, emitted_law, every_outcome, grown_tree, joint_law, merged

CASES = [  # tree, vocabulary, nodes, depth, width, beta
    ("topk", 4, 8, 3, 3, 0.85),
    ("chain", 3, 4, 3, None, 0.85),
    ("multi", 3, 5, 2, 2, 0.85),
    ("multi", 2, 7, 2, 3, 0.85),
    ("hybrid", 3, 3, 2, 1, 0.85),
    ("hybrid", 3, 5, 2, 2, 0.85),
    ("hybrid", 3, 7, 3, 2, 0.6),
    ("hybrid", 4, 7, 2, 3, 0.3),
    ("hybrid", 3, 9, 2, 4, 0.85),
    ("hybrid", 3, 8, 3, None, 0.2),
    ("rsd", 3, 4, 2, None, 0.85),
    ("rsd", 3, 5, 2, None, 0.3),
    ("rsd", 4, 4, 2, None, 0.6),
    ("rsd", 2, 7, 3, 2, 0.5),
    ("rsd", 2, 8, 2, None, 0.5),  # more slots than candidates on the first level
]
SHAPED = [  # vocabulary, settings of the hybrid tree
    (3, TreeSettings(9, 3, None, 0.4)),
    (4, TreeSettings(8, 2, None, 0.6)),
    (3, TreeSettings(7, 3, None, 0.2)),
    (3, TreeSettings(8, 3, None, 0.3, sharpness=0.5)),
    (4, TreeSettings(7, 2, None, 0.5, sharpness=2.0)),
    (3, TreeSettings(30, 2, None, 0.5)),  # more slots than candidates on the first level
    (3, TreeSettings(7, 3, None, 0.4, levels="equal")),  # as on a GPU
    (4, TreeSettings(6, 2, None, 0.2, sharpness=0.5, levels="equal")),
]


def trees_of(name, settings, draft):
    return merged(every_outcome(lambda draws: grown_tree(name, settings, draft, draws).row(0)))


@pytest.mark.parametrize("verifier", ["hsd", "token"])
@pytest.mark.parametrize(("name", "vocab", "nodes", "depth", "width", "beta"), CASES)
@pytest.mark.parametrize("zeros", [0.0, 0.3])
def test_emitted_law_is_the_targets(name, vocab, nodes, depth, width, beta, zeros, verifier):
    target, draft = Table(vocab, seed=1, zeros=zeros), Table(vocab, seed=2, zeros=zeros)
    outcomes = trees_of(name, TreeSettings(nodes, depth, width, beta), draft)
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1, abs=1e-12)
    horizon = depth + 1
    law, _ = emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, verifier), horizon)
    assert (law - joint_law(target, horizon)).abs().max() < 1e-10


@pytest.fixture(params=["native", "tensors"])
def form(request, monkeypatch):
    """How a level is chosen: in one native call, where that is possible, or by tensors."""
    if request.param == "tensors":
        monkeypatch.setattr(native_level.LIBRARY, "unavailable", "not in this test")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("verifier", ["hsd", "token"])
@pytest.mark.parametrize(("vocab", "settings"), SHAPED)
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_growing_levels_and_other_powers_of_q_are_lossless(vocab, settings, zeros, verifier):
    target, draft = Table(vocab, seed=8, zeros=zeros), Table(vocab, seed=9, zeros=zeros)
    outcomes = trees_of("hybrid", settings, draft)
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1, abs=1e-12)
    horizon = settings.depth + 1
    law, _ = emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, verifier), horizon)
    assert (law - joint_law(target, horizon)).abs().max() < 1e-10


@pytest.mark.parametrize("verifier", ["hsd", "token"])
@pytest.mark.parametrize(("name", "beta"), [("hybrid", 0.2), ("rsd", 0.2), ("rsd", 0.6)])
def test_a_draft_whose_sharpness_depends_on_the_drawn_token(name, beta, verifier):
    """Values of the next level's slots then depend strongly on what was drawn."""
    target, draft = Table(3, seed=3), MoodyTable(3, seed=6)
    outcomes = trees_of(name, TreeSettings(5, 2, None, beta), draft)
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1, abs=1e-12)
    assert len({tuple(tree.parents.tolist()) for _, tree in outcomes}) > 1
    law, _ = emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, verifier), 3)
    assert (law - joint_law(target, 3)).abs().max() < 1e-10


@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_levels_whose_size_depends_on_the_draws_above(verifier):
    target, draft = Table(3, seed=3), MoodyTable(3, seed=4)
    outcomes = trees_of("hybrid", TreeSettings(7, 3, None, 0.2), draft)
    sizes = {tuple(hsd.TreeBatch.of_one(tree).depths[0].bincount().tolist()) for _, tree in outcomes}
    assert len(sizes) > 1
    law, _ = emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, verifier), 4)
    assert (law - joint_law(target, 4)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["hybrid", "rsd"])
@pytest.mark.parametrize("beta", [0.3, 0.85])
def test_hsd_accepts_at_least_as_much_as_token_wise(name, beta):
    target, draft = Table(4, seed=5), Table(4, seed=6)
    outcomes = trees_of(name, TreeSettings(4, 2, 2, beta), draft)
    expected = {
        name: emitted_law(target, outcomes, lambda tree, p: hsd.stopping_law(tree, p, name), 3)[1]  # noqa: B023
        for name in ("hsd", "token")
    }
    assert expected["hsd"] >= expected["token"] - 1e-12


def test_hybrid_has_both_kinds_of_children():
    """Otherwise the test above would prove nothing about the hybrid tree."""
    outcomes = trees_of("hybrid", TreeSettings(7, 2, 3, 0.5), Table(4, seed=2))
    kinds = {(row >= 0) for _, tree in outcomes for row in tree.proposal_rows.tolist()[1:]}
    assert kinds == {True, False}


def drop_unlikely_draws(tree: hsd.DraftTree, draft: Table) -> hsd.DraftTree:
    """The mistake the rule forbids: prune a sampled leaf because the token that was drawn has a small q."""
    parents = tree.parents.tolist()
    keep = [
        node in parents or row < 0 or tree.proposals[row, token] >= 0.4
        for node, (row, token) in enumerate(zip(tree.proposal_rows.tolist(), tree.tokens.tolist()))
    ]
    kept = torch.tensor([node for node, wanted in enumerate(keep) if wanted])
    place = {node: index for index, node in enumerate(kept.tolist())}
    parents = torch.tensor([-1 if parents[node] < 0 else place[parents[node]] for node in kept.tolist()])
    return dataclasses.replace(
        tree, tokens=tree.tokens[kept], parents=parents, proposal_rows=tree.proposal_rows[kept], layout=None
    )


def drop_by_reach(tree: hsd.DraftTree) -> hsd.DraftTree:
    """The subtler mistake: prune sampled leaves by a reach that knows their token (right for what grows below)."""
    reach = [1.0]
    for node in range(1, len(tree)):
        row, token = int(tree.proposal_rows[node]), int(tree.tokens[node])
        worth = 0.3 + 0.7 * tree.proposals[row, token].item() if row >= 0 else 0.5
        reach.append(reach[int(tree.parents[node])] * worth)
    parents = tree.parents.tolist()
    kept = [node for node in range(len(tree)) if node in parents or reach[node] > 0.3]
    place = {node: index for index, node in enumerate(kept)}
    new_parents = torch.tensor([-1 if parents[node] < 0 else place[parents[node]] for node in kept])
    kept = torch.tensor(kept)
    return dataclasses.replace(
        tree, tokens=tree.tokens[kept], parents=new_parents, proposal_rows=tree.proposal_rows[kept], layout=None
    )


def test_pruning_by_a_reach_that_knows_the_token_is_caught():
    target, draft = Table(3, seed=1), Table(3, seed=2)
    settings = TreeSettings(5, 2, 2, 0.85)
    outcomes = [(weight, drop_by_reach(tree)) for weight, tree in trees_of("hybrid", settings, draft)]
    law, _ = emitted_law(target, outcomes, hsd.stopping_law, 3)
    assert (law - joint_law(target, 3)).abs().max() > 1e-3


def test_a_builder_that_looks_at_the_drawn_token_is_caught():
    target, draft = Table(3, seed=1), Table(3, seed=2)
    outcomes = [
        (weight, drop_unlikely_draws(tree, draft))
        for weight, tree in trees_of("hybrid", TreeSettings(5, 2, 2, 0.85), draft)
    ]
    law, _ = emitted_law(target, outcomes, hsd.stopping_law, 3)
    assert (law - joint_law(target, 3)).abs().max() > 1e-3
