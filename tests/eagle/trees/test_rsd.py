"""Trees sampled without replacement: what a slot may depend on, the recorded distributions, tokens that run out."""

import pytest
import torch

import hsd
from eagle import EagleModel
from eagle.trees import Draft, TreeSettings, rsd
from tests.eagle.tiny import tiny_head, tiny_target
from tests.eagle.toy import MoodyTable, Table, TableDrafter, softmax
from tests.eagle.trees.test_lossless import trees_of
from tests.hsd.random_trees import uniforms


def slots(columns: torch.Tensor, q: torch.Tensor, reach: torch.Tensor, w: int, beta: float) -> set[tuple[int, int]]:
    """(parent, which child of it) of a level's slots, the columns having been drawn in this order."""
    children = rsd._Children(columns, q.gather(2, columns), q.square().sum(2, keepdim=True))
    picked = rsd._allot(children.values(reach, beta), w)
    return set(zip(picked.parent[0].tolist(), picked.turn[0].tolist()))


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.85])
def test_whether_a_child_exists_does_not_depend_on_its_token(beta):
    """Another token in its place (what was drawn after it in turn) leaves it where it is, and siblings are a prefix."""
    generator, moved = torch.Generator().manual_seed(2), 0
    for _ in range(60):
        q = (2 * torch.randn(1, 3, 5, generator=generator)).softmax(-1)
        reach = torch.rand(1, 3, generator=generator)
        columns = hsd.draw_distinct(q, uniforms(1, 3, 4, generator=generator))
        found = slots(columns, q, reach, 5, beta)
        assert all((parent, before) in found for parent, turn in found for before in range(turn))
        for parent, turn in found:
            for token in set(range(5)) - set(columns[0, parent, : turn + 1].tolist()):
                other = columns.clone()
                other[0, parent, turn:][other[0, parent, turn:] == token] = columns[0, parent, turn]
                other[0, parent, turn] = token
                changed = slots(other, q, reach, 5, beta)
                assert (parent, turn) in changed
                moved += changed != found
    assert moved, "no slot depends on any token: the test is empty"


@pytest.mark.parametrize("nodes", [4, 5, 6])
def test_siblings_are_distinct_and_recorded_with_what_the_earlier_ones_left(nodes):
    table, settings = Table(3, seed=3), TreeSettings(nodes, 2, beta=0.4)
    counts = set()
    for _, tree in trees_of("rsd", settings, table):
        for node in range(1, len(tree)):
            parent, token = int(tree.parents[node]), int(tree.tokens[node])
            path, up = (), parent
            while up > 0:
                path, up = (int(tree.tokens[up]), *path), int(tree.parents[up])
            wanted = table(path).clone()
            earlier = [int(tree.tokens[other]) for other in range(1, node) if int(tree.parents[other]) == parent]
            assert token not in earlier
            wanted[earlier] = 0
            assert torch.allclose(tree.proposals[tree.proposal_rows[node]], wanted / wanted.sum(), atol=1e-12)
            counts.add(len(earlier) + 1)
    assert max(counts) > 1


def test_the_number_of_children_differs_between_nodes_and_outcomes():
    outcomes = trees_of("rsd", TreeSettings(6, 2, beta=0.2), MoodyTable(3, seed=2))
    shapes = {tuple(tree.parents.tolist()) for _, tree in outcomes}
    assert len(shapes) > 2
    assert all(
        tree.layout.covers(hsd.Layout.infer(tree.parents.tolist(), [False, *[True] * 5])) for _, tree in outcomes
    )


def test_values_know_the_earlier_siblings_only():
    """Children of one node: beta + (1 - beta) sum of q^2, then what is left; never more than the sibling before."""
    q = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]], dtype=torch.float64)
    columns = torch.tensor([[[1, 0, 2]]])
    children = rsd._Children(columns, q.gather(2, columns), q.square().sum(2, keepdim=True))
    values = children.values(torch.full((1, 1), 0.8, dtype=torch.float64), beta=0.6)[0, 0].tolist()
    second = (0.25 + 0.0225 + 0.0025) / 0.7
    third = (0.0225 + 0.0025) / 0.2
    assert values == pytest.approx([0.8 * (0.6 + 0.4 * 0.365), 0.8 * 0.4 * second, 0.8 * 0.4 * third])
    reach = children.reach(torch.full((1, 1), 0.8, dtype=torch.float64), beta=0.6)[0, 0].tolist()
    assert reach == pytest.approx([0.8 * (0.6 + 0.4 * 0.3), 0.8 * 0.4 * 0.5, 0.8 * 0.4 * 0.15])
    falling = children.values(torch.ones(1, 1, dtype=torch.float64), beta=0.0)[0, 0].tolist()
    assert falling == sorted(falling, reverse=True)


def test_ties_go_to_the_earlier_sibling():
    picked = rsd._allot(torch.tensor([[[0.2, 0.2, 0.2], [0.2, 0.1, 0.1]]]), 3)
    assert picked.parent.tolist() == [[0, 1, 0]]
    assert picked.turn.tolist() == [[0, 0, 1]]


def draft_of(drafter, logits: torch.Tensor, settings: TreeSettings, seed: int) -> Draft:
    """A draft of every row of logits [B, Vd], with as many numbers as the builder says it needs."""
    numbers = uniforms(len(logits), rsd.uniforms(settings), generator=torch.Generator().manual_seed(seed))
    return Draft(drafter, torch.zeros(len(logits), dtype=torch.int64), logits, softmax, numbers)


def test_where_tokens_run_out_the_rest_are_topk_children():
    """q has two tokens of four: of three children two are sampled, and the third is one that nothing was drawn for."""
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    settings = TreeSettings(4, 1)
    tree = rsd.build(draft_of(TableDrafter(Table(4, seed=1)), logits, settings, 0), settings).row(0)
    assert tree.proposal_rows.tolist() == [-1, 0, 1, -1]
    assert set(tree.tokens[1:3].tolist()) == {0, 2} and tree.tokens[3] in (1, 3)
    assert tree.proposals[1].max() == 1
    law = hsd.stopping_law(tree, torch.full((4, 4), 0.25), "hsd")
    assert law.stop.sum() == pytest.approx(1)


@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_real_sizes_pass_the_checks_and_sum_to_one(verifier):
    """Rows whose trees differ, float32, a draft vocabulary: every value checked by `hsd`."""
    generator = torch.Generator().manual_seed(1)
    drafter = NoiseDrafter(torch.randperm(300, generator=generator)[:200], generator)
    settings, logits = TreeSettings(30, 4), drafter.grow(torch.zeros(3, 1), None)[:, 0]
    batch = rsd.build(draft_of(drafter, logits, settings, 1), settings)
    assert len({tuple(row) for row in batch.parents.tolist()}) == 3
    target = (3 * torch.randn(3, 30, 300, generator=generator)).softmax(-1)
    decision = hsd.decide(batch, target, verifier, uniforms(3, hsd.DRAWS, generator=generator), check=True)
    assert torch.allclose(decision.stop.sum(1), torch.ones(3), atol=1e-5)
    wide, narrow = (
        torch.stack([hsd.stopping_law(tree, p, verifier).stop for tree, p in zip(trees, target)])
        for trees in (
            [batch.row(row) for row in range(3)],
            [
                hsd.DraftTree(t.tokens, t.parents, t.proposal_rows, t.proposals, t.support)
                for t in map(batch.row, range(3))
            ],
        )
    )
    assert torch.allclose(wide, narrow, atol=1e-6)


class NoiseDrafter:
    """Random logits, whatever was drawn."""

    def __init__(self, support: torch.Tensor, generator: torch.Generator):
        self.support, self.generator = support, generator

    def grow(self, parents, tokens):
        return 3 * torch.randn(*parents.shape, len(self.support), generator=self.generator)


def test_temperature_zero_is_topk():
    target = tiny_target()
    model = EagleModel.from_head(target, tiny_head(target))
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    ours, theirs = (
        model.generate(prompt, 20, return_dict_in_generate=True, tree=tree, nodes=8, depth=3, temperature=0.0).rows[0]
        for tree in ("rsd", "topk")
    )
    assert ours.new_tokens == theirs.new_tokens
    assert [step[:2] for step in ours.steps] == [step[:2] for step in theirs.steps]


def test_a_draft_distribution_that_is_not_finite_is_replaced_by_the_uniform_one():
    settings = TreeSettings(3, 1)
    draft = draft_of(TableDrafter(Table(4, seed=1)), torch.full((1, 4), torch.nan), settings, 0)
    tree = rsd.build(draft, settings).row(0)
    assert tree.proposals[0].tolist() == pytest.approx([0.25] * 4) and bool(draft.replaced())
