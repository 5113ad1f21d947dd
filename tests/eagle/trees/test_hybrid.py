"""Hybrid trees: level sizes, what a slot may depend on, temperature 0."""

from collections import defaultdict

import pytest
import torch

import hsd
from eagle import EagleModel
from eagle.trees import LEVELS, TreeSettings, hybrid
from eagle.trees.grown import even_level
from tests.eagle.tiny import tiny_head, tiny_target
from tests.eagle.toy import MoodyTable, Table, every_outcome, grown_tree
from tests.eagle.trees.test_lossless import trees_of


@pytest.fixture(scope="module")
def model():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target))


def generate(model, **settings):
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    return model.generate(prompt, 40, return_dict_in_generate=True, **settings).rows[0]


@pytest.mark.parametrize("nodes", [2, 3, 8, 9, 16, 60, 128])
@pytest.mark.parametrize("depth", [1, 3, 7, 12])
def test_equal_levels_use_the_whole_budget(nodes, depth):
    sizes, left = [], nodes - 1
    for below in reversed(range(depth)):
        sizes.append(even_level(left, below))
        left -= sizes[-1]
        if not left:
            break
    assert sum(sizes) == nodes - 1 and len(sizes) == min(depth, nodes - 1)
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def sizes_of(tree: hsd.DraftTree) -> list[int]:
    """Nodes of every level below the root."""
    depths = hsd.TreeBatch.of_one(tree).depths[0].tolist()
    return [depths.count(level) for level in range(1, max(depths) + 1)]


def test_width_limits_every_level():
    for _, tree in trees_of("hybrid", TreeSettings(9, 3, 2), Table(3, seed=2)):
        assert max(sizes_of(tree)) == 2


def test_levels_are_of_the_kind_that_is_asked_for():
    """Equal ones are what a GPU grows."""
    sizes = {
        levels: {tuple(sizes_of(tree)) for _, tree in trees_of("hybrid", settings, MoodyTable(3, seed=4))}
        for levels in LEVELS
        for settings in [TreeSettings(7, 3, beta=0.2, levels=levels)]
    }
    assert sizes["equal"] == {(2, 2, 2)} and len(sizes["ragged"]) > 1


def test_the_root_alone():
    tree = trees_of("hybrid", TreeSettings(1, 3), Table(3, seed=2))[0][1]
    assert len(tree) == 1


@pytest.mark.parametrize("settings", [{"beta": 1.5}, {"nodes": 0}, {"sharpness": 0}, {"levels": "even"}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TreeSettings(**settings)


def shape_of_level(tree: hsd.DraftTree, level: int) -> tuple:
    """Size, parents, kinds and proposal laws of a level: what may not depend on its own draws."""
    sizes = sizes_of(tree)
    first = 1 + sum(sizes[:level])
    nodes = range(first, first + sum(sizes[level : level + 1]))
    rows = [int(tree.proposal_rows[node]) for node in nodes]
    laws = [tuple(tree.proposals[row].tolist()) if row >= 0 else None for row in rows]
    chosen = [int(tree.tokens[node]) if row < 0 else None for node, row in zip(nodes, rows)]
    return tuple(int(tree.parents[node]) for node in nodes), tuple(laws), tuple(chosen)


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        (TreeSettings(7, 3, beta=0.5), Table(3, seed=4)),
        (TreeSettings(9, 3, beta=0.3), Table(3, seed=4)),
        (TreeSettings(8, 2, beta=0.6), Table(3, seed=4)),
        (TreeSettings(7, 3, beta=0.5, sharpness=0.6), Table(3, seed=4)),
        (TreeSettings(7, 3, beta=0.2), MoodyTable(3, seed=4)),  # the sizes of levels depend on draws, too
    ],
)
def test_a_level_depends_on_the_draws_above_it_only(settings, table):
    """The rule that makes verification lossless, checked on every outcome of the real builder."""
    seen = [defaultdict(set) for _ in range(settings.depth)]
    for _, tree in trees_of("hybrid", settings, table):
        for level in range(settings.depth):
            above = tuple(tree.tokens[: 1 + sum(sizes_of(tree)[:level])].tolist())
            seen[level][above].add(shape_of_level(tree, level))
    assert all(len(shapes) == 1 for level in seen for shapes in level.values())
    assert any(len(level) > 1 for level in seen), "no draw could be told from another: the test is empty"


def test_what_grows_below_a_draw_may_depend_on_it():
    """Slots go where the drawn token makes them worth most, and as many as it makes them worth."""
    outcomes = trees_of("hybrid", TreeSettings(7, 3, beta=0.2), MoodyTable(3, seed=4))
    assert len({shape_of_level(tree, 2)[0] for _, tree in outcomes}) > 1
    assert len({tuple(sizes_of(tree)) for _, tree in outcomes}) > 1


def test_proposals_are_the_law_that_was_drawn_from():
    """q without the chosen siblings, renormalised."""
    table, settings = Table(4, seed=3), TreeSettings(4, 1, beta=0.6)
    for _, tree in every_outcome(lambda draws: grown_tree("hybrid", settings, table, draws).row(0)):
        chosen = [int(token) for token, row in zip(tree.tokens[1:], tree.proposal_rows[1:]) if row < 0]
        expected = table(()).clone()
        expected[chosen] = 0
        assert torch.allclose(tree.proposals[0], expected / expected.sum(), atol=1e-12)


def test_a_certain_draft_makes_a_chain_of_its_sampled_child():
    """With q one-hot a drawn child is as good as certain: nothing is worth choosing beside it."""
    q = torch.full((1, 1, 5), 1e-9)
    q[..., 2] = 1
    picked = hybrid._candidates(q, torch.ones(1, 1), 2, beta=0.5).best([2])
    assert picked.sampled.tolist() == [[True, False]]
    reach = hybrid._reach(q, torch.ones(1, 1), picked._replace(q_column=torch.zeros(1, 2)), torch.tensor([[2, 0]]), 0.5)
    assert reach[0, 0] == pytest.approx(1, abs=1e-6)


def test_slot_values_add_up_to_the_mass_that_passes():
    """The values of one node's winners are the growth of R (1 - (1 - beta) u G), so they sum to it."""
    q = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    picked = hybrid._candidates(q, torch.ones(1, 1), 3, beta=0.4).best([3])
    columns = torch.where(picked.sampled, 3, picked.column)
    reach = hybrid._reach(q, torch.ones(1, 1), picked, columns, beta=0.4)
    chosen = q[0, 0, :2]
    assert picked.topk_mass(1).item() == pytest.approx(0.8)
    assert reach[0, 1:].tolist() == pytest.approx(chosen.tolist())
    assert reach[0, 0].item() == pytest.approx(0.2 * (1 - 0.6 * 0.2 * 0.95))


@pytest.mark.parametrize("tree", ["hybrid"])
@pytest.mark.parametrize(("nodes", "depth"), [(8, 3), (20, 5)])
def test_temperature_zero_is_topk(model, tree, nodes, depth):
    ours, theirs = (generate(model, tree=name, nodes=nodes, depth=depth, temperature=0.0) for name in (tree, "topk"))
    assert ours.new_tokens == theirs.new_tokens
    assert [step[:2] for step in ours.steps] == [step[:2] for step in theirs.steps]
