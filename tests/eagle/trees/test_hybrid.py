"""Hybrid trees: level sizes, what a slot may depend on, temperature 0, and the choices of `auto`."""
from collections import defaultdict

import pytest
import torch

import hsd
from eagle import EagleModel
from eagle.engine.sampling import Law, SamplingSettings
from eagle.trees import TreeSettings, auto, find_tree, hybrid
from tests.eagle.tiny import tiny_head, tiny_target
from tests.eagle.toy import ReplayedDraws, Table, TableDrafter, every_outcome
from tests.eagle.trees.test_lossless import SOFTMAX, trees_of

ROOT = torch.zeros(1, dtype=torch.int64)


@pytest.fixture(scope="module")
def model():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target))


def generate(model, **settings):
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    return model.generate(prompt, 40, return_dict_in_generate=True, **settings)


@pytest.mark.parametrize("nodes", [2, 3, 8, 9, 16, 60, 128])
@pytest.mark.parametrize("depth", [1, 3, 7, 12])
@pytest.mark.parametrize("growth", [0.7, 1.0, 1.25])
def test_level_sizes_use_the_whole_budget(nodes, depth, growth):
    sizes = hybrid.level_sizes(TreeSettings(nodes, depth, growth=growth))
    assert sum(sizes) == nodes - 1
    assert min(sizes) >= 1 and len(sizes) == min(depth, nodes - 1)
    if growth > 1:
        assert all(below >= above - 1 for above, below in zip(sizes, sizes[1:]))


def test_width_limits_every_level():
    assert hybrid.level_sizes(TreeSettings(60, 7, 4)) == [4] * 7


def test_the_root_alone():
    tree = trees_of("hybrid", TreeSettings(1, 3), Table(3, seed=2))[0][1]
    assert len(tree) == 1


def test_equal_levels_by_default():
    assert hybrid.level_sizes(TreeSettings(57, 7)) == [8] * 7


@pytest.mark.parametrize("settings", [{"growth": 0.0}, {"growth": 99.0}, {"sharpness": 0.0}, {"beta": 1.5}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TreeSettings(**settings)


def shape_of_level(tree: hsd.DraftTree, settings: TreeSettings, level: int) -> tuple:
    """Parents, kinds and proposal laws of a level: what may not depend on its own draws."""
    first = 1 + sum(hybrid.level_sizes(settings)[:level])
    nodes = range(first, first + hybrid.level_sizes(settings)[level])
    rows = [int(tree.proposal_rows[node]) for node in nodes]
    laws = [tuple(tree.proposals[row].tolist()) if row >= 0 else None for row in rows]
    chosen = [int(tree.tokens[node]) if row < 0 else None for node, row in zip(nodes, rows)]
    return tuple(int(tree.parents[node]) for node in nodes), tuple(laws), tuple(chosen)


@pytest.mark.parametrize("settings", [
    TreeSettings(7, 3, beta=0.5), TreeSettings(9, 3, beta=0.3, growth=1.4, sharpness=0.7),
    TreeSettings(8, 2, beta=0.6, growth=0.8, sharpness=1.3),
])
def test_a_level_depends_on_the_draws_above_it_only(settings):
    """The rule that makes verification lossless, checked on every outcome of the real builder."""
    sizes = hybrid.level_sizes(settings)
    seen = [defaultdict(set) for _ in sizes]
    for _, tree in trees_of("hybrid", settings, Table(3, seed=4)):
        for level in range(len(sizes)):
            above = tuple(tree.tokens[: 1 + sum(sizes[:level])].tolist())
            seen[level][above].add(shape_of_level(tree, settings, level))
    assert all(len(shapes) == 1 for level in seen for shapes in level.values())
    assert any(len(level) > 1 for level in seen), "no draw could be told from another: the test is empty"


def test_what_grows_below_a_draw_may_depend_on_it():
    """Slots go where the drawn token makes them worth most: not the same shape below every draw."""
    settings = TreeSettings(7, 3, beta=0.2)
    outcomes = trees_of("hybrid", settings, Table(3, seed=2))
    shapes = {shape_of_level(tree, settings, 2)[0] for _, tree in outcomes}
    assert len(shapes) > 1


def test_proposals_are_the_law_that_was_drawn_from():
    """q to the power, without the chosen siblings, renormalised."""
    table, settings = Table(4, seed=3), TreeSettings(4, 1, beta=0.6, sharpness=0.6)
    drafter = TableDrafter(table)
    build = lambda draw: hybrid.build(drafter, ROOT, drafter.root_logits(), settings, SOFTMAX, draw).row(0)
    for _, tree in every_outcome(build):
        chosen = [int(token) for token, row in zip(tree.tokens[1:], tree.proposal_rows[1:]) if row < 0]
        expected = table(()) ** 0.6
        expected[chosen] = 0
        assert torch.allclose(tree.proposals[0], expected / expected.sum(), atol=1e-12)


def test_a_certain_draft_makes_a_chain_of_its_sampled_child():
    """With q one-hot a drawn child is as good as certain: nothing is worth choosing beside it."""
    q = torch.full((1, 1, 5), 1e-9)
    q[..., 2] = 1
    picked = hybrid._allot(q, torch.ones(1, 1), 2, beta=0.5)
    assert picked.sampled.tolist() == [[True, False]]
    reach = hybrid._reach(q, torch.ones(1, 1), picked._replace(q_column=torch.zeros(1, 2)), torch.tensor([[2, 0]]), 0.5)
    assert reach[0, 0] == pytest.approx(1, abs=1e-6)


def test_slot_values_add_up_to_the_mass_that_passes():
    """The values of one node's winners are the growth of R (1 - (1 - beta) u G), so they sum to it."""
    q = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    picked = hybrid._allot(q, torch.ones(1, 1), 3, beta=0.4)
    columns = torch.where(picked.sampled, 3, picked.column)
    reach = hybrid._reach(q, torch.ones(1, 1), picked, columns, beta=0.4)
    chosen = q[0, 0, :2]
    assert picked.chosen_mass(1).item() == pytest.approx(0.8)
    assert reach[0, 1:].tolist() == pytest.approx(chosen.tolist())
    assert reach[0, 0].item() == pytest.approx(0.2 * (1 - 0.6 * 0.2 * 0.95))


@pytest.mark.parametrize("tree", ["hybrid", "auto"])
@pytest.mark.parametrize("nodes, depth", [(8, 3), (20, 5)])
def test_temperature_zero_is_topk(model, tree, nodes, depth):
    ours, theirs = (generate(model, tree=name, nodes=nodes, depth=depth, temperature=0.0) for name in (tree, "topk"))
    assert ours.new_tokens == theirs.new_tokens
    assert [step[:2] for step in ours.steps] == [step[:2] for step in theirs.steps]


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 30])
def test_auto_generates_within_its_budget(model, nodes):
    result = generate(model, tree="auto", nodes=nodes, depth=5, generator=torch.Generator().manual_seed(0))
    assert len(result.new_tokens) == 40
    assert all(step.nodes <= nodes for step in result.steps)
    assert all(step.accepted <= 5 for step in result.steps)


def test_auto_batches_rows(model):
    prompts = torch.tensor([[3, 1, 4], [2, 7, 1]])
    rows = model.generate(prompts, 12, tree="auto", nodes=12, depth=4, return_dict_in_generate=True,
                          generator=torch.Generator().manual_seed(1))
    assert [len(row.new_tokens) for row in rows] == [12, 12]


CELLS = [
    {"temperature": 0.5, "nodes": 8, "tree": "topk", "depth": 7},
    {"temperature": 1.0, "nodes": 8, "tree": "chain", "depth": 5},
    {"temperature": 1.0, "nodes": 60, "tree": "hybrid", "depth": 9, "beta": 0.7, "growth": 1.2, "sharpness": 0.9},
]


@pytest.mark.parametrize("temperature, nodes, tree", [(0.0, 60, "topk"), (0.4, 60, "topk"), (0.8, 10, "chain"),
                                                      (1.0, 30, "hybrid"), (2.0, 200, "hybrid")])
def test_auto_takes_the_nearest_measured_choice(temperature, nodes, tree):
    assert auto.choose(temperature, TreeSettings(nodes, 7), CELLS).tree == tree


def test_auto_keeps_to_the_limits_and_takes_the_measured_settings():
    settings = auto.choose(1.0, TreeSettings(60, 7, width=3), CELLS).settings
    assert settings == TreeSettings(60, 7, None, beta=0.7, growth=1.2, sharpness=0.9)
    assert auto.choose(1.0, TreeSettings(60, 12), CELLS).settings.depth == 9


@pytest.mark.parametrize("nodes", range(2, 40))
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.5])
def test_the_rule_of_thumb_is_valid_for_every_budget(nodes, temperature):
    chosen = auto.choose(temperature, TreeSettings(nodes, 7))
    assert chosen.tree == "hybrid" and 1 <= chosen.settings.depth <= min(7, nodes - 1)
    assert sum(hybrid.level_sizes(chosen.settings)) == nodes - 1


def test_auto_gives_the_drafter_enough_room():
    """The room is reserved before the temperature is known: it covers every choice."""
    for nodes in (2, 8, 60):
        settings = TreeSettings(nodes, 7)
        room = auto.slots(settings)
        cells = auto.read_table()["cells"]
        for temperature in (0.0, 0.3, 0.7, 1.0, 1.5):
            for table in (None, cells):
                tree, chosen = auto.choose(temperature, settings, table)
                assert find_tree(tree).slots(chosen) <= room


def test_the_shipped_choices_are_complete():
    """Every choice says where it was measured and names a tree and its settings."""
    table = auto.read_table()
    if not table["cells"]:
        pytest.skip("no measured choices are shipped")
    assert {"git", "date", "questions", "versions"} <= table["provenance"].keys()
    for cell in table["cells"]:
        assert cell["tree"] in auto.KINDS and cell["depth"] >= 1 and cell["nodes"] >= 2
        assert cell["tree"] != "hybrid" or {"beta", "growth", "sharpness"} <= cell.keys()
        assert max(cell["expected"].values()) - cell["expected"][cell["tree"]] < 0.5


def test_another_pair_does_not_get_this_pairs_choices(monkeypatch):
    """Measured choices are for the pair they were measured on; others get the rule of thumb."""
    only_topk = {"pair": {"hidden_size": 1}, "cells": [{"temperature": 1.0, "nodes": 8, "tree": "topk", "depth": 2}]}
    monkeypatch.setattr(auto, "read_table", lambda: only_topk)
    drafter = TableDrafter(Table(3, seed=2))
    law = Law(SamplingSettings(1.0))
    tree = auto.build(drafter, ROOT, drafter.root_logits().float(), TreeSettings(6, 2), law, ReplayedDraws(()))
    assert (tree.proposal_rows >= 0).any(), "the rule of thumb draws"
