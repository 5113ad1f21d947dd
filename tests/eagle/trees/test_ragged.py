"""A hybrid tree is its row's own: beside any other tree a row gets the tree, and the law, that it gets alone."""

import itertools

import pytest
import torch

import hsd
from eagle.trees import Draft, TreeBatch, TreeSettings, hybrid
from hsd.verify import _solve
from tests.eagle.toy import (
    MoodyTable,
    ReplayedDraws,
    Table,
    TableDrafter,
    every_outcome,
    grown_tree,
    node_prefixes,
    softmax,
)
from tests.hsd.random_trees import uniforms

CASES = [  # settings, the tables of two rows
    (TreeSettings(5, 2, None, 0.2), MoodyTable(2, seed=4), Table(2, seed=9, sharpness=4.0)),
    (TreeSettings(6, 3, None, 0.3), MoodyTable(2, seed=6), Table(2, seed=2, sharpness=5.0)),
    (TreeSettings(9, 3, 2, 0.2), MoodyTable(2, seed=6), Table(2, seed=2)),  # the first row needs padding
    (
        TreeSettings(6, 3, None, 0.3, sharpness=0.9),
        Table(3, seed=2, sharpness=6.0, zeros=0.3),
        MoodyTable(3, seed=4, zeros=0.3),
    ),
]
LAWS = 40  # pairs of a case whose laws are compared, too


class TwoRows(Draft):
    """Two rows whose draws are given, call by call; a draw at a padding node is any."""

    def __init__(self, tables: tuple[Table, Table], calls: tuple[list[list[int]], list[list[int]]]):
        drafter = TableDrafter(*tables)
        root = torch.zeros(2, dtype=torch.int64)
        super().__init__(drafter, root, drafter.root_logits, softmax, torch.zeros(2, 0))
        self.calls, self.at = calls, 0

    def sample(self, probs, places=None, reserved=None):
        rows = [calls[self.at] if self.at < len(calls) else [] for calls in self.calls]
        self.at += 1
        return torch.tensor([row + [0] * (probs.shape[1] - len(row)) for row in rows])


def outcomes(settings: TreeSettings, table: Table) -> list[tuple[TreeBatch, list[list[int]]]]:
    """Every tree that the builder grows alone, and the draws of its calls."""

    def grow(draws: ReplayedDraws) -> tuple[TreeBatch, list[list[int]]]:
        return grown_tree("hybrid", settings, table, draws), draws.calls

    return [outcome for _, outcome in every_outcome(grow)]


def assert_same(batch: TreeBatch, row: int, alone: TreeBatch) -> None:
    """The row's nodes, in their order, with the distributions they were sampled from; behind them padding."""
    count = alone.tokens.shape[1]
    for name in ("tokens", "parents", "depths"):
        assert torch.equal(getattr(batch, name)[row, :count], getattr(alone, name)[0]), name
    mine, theirs = batch.proposal_rows[row, :count], alone.proposal_rows[0]
    assert torch.equal(mine < 0, theirs < 0) and (mine >= -1).all()
    assert torch.equal(batch.proposals[row, mine[mine >= 0]], alone.proposals[0, theirs[theirs >= 0]])
    assert (batch.proposal_rows[row, count:] == -2).all() and (batch.parents[row, count:] == 0).all()


def assert_same_law(batch: TreeBatch, trees: list[TreeBatch], targets: list[Table], verifier: str) -> None:
    """Stopping distribution, residuals and E[accepted] of every row; padding stops nothing and takes nothing."""
    width, vocab = batch.tokens.shape[1], targets[0].vocab
    probs = [torch.stack([p(prefix) for prefix in node_prefixes(tree.row(0))]) for p, tree in zip(targets, trees)]
    filled = [torch.cat([p, torch.full((width - len(p), vocab), 1 / vocab, dtype=p.dtype)]) for p in probs]
    inputs, found = _solve(batch, torch.stack(filled), verifier)
    for row, (tree, p) in enumerate(zip(trees, probs)):
        alone = hsd.stopping_law(hsd.DraftTree(*bare(tree)), p, verifier)
        assert torch.allclose(found.stop[row, : len(p)], alone.stop, rtol=0, atol=1e-13)
        assert (found.stop[row, len(p) :] == 0).all()
        assert torch.allclose((found.stop * inputs.topo.depth).sum(1)[row], alone.expected_accepted, rtol=0, atol=1e-12)
        for node in range(len(p)):
            mine = found.residual(torch.full((len(batch),), node))[row]
            assert torch.allclose(alone.stop[node] * mine, alone.stop[node] * alone.residual(node), rtol=0, atol=1e-12)


def bare(tree: TreeBatch) -> tuple:
    """What a tree is made of, without its layout."""
    row = tree.row(0)
    return row.tokens, row.parents, row.proposal_rows, row.proposals, row.support


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_outcome_of_a_row_beside_every_outcome_of_another(case):
    """Both trees are those of the rows alone, bit for bit, and so are their laws."""
    settings, *tables = CASES[case]
    first, second = (outcomes(settings, table) for table in tables)
    stride = 1 + len(first) * len(second) // LAWS
    targets, ragged, padded = [Table(table.vocab, seed=20 + row) for row, table in enumerate(tables)], 0, 0
    for index, ((one, ones), (other, others)) in enumerate(itertools.product(first, second)):
        batch = hybrid.build(TwoRows(tables, (ones, others)), settings)
        for row, alone in enumerate((one, other)):
            assert_same(batch, row, alone)
        ragged += not torch.equal(*batch.depths)
        padded += bool((batch.proposal_rows < -1).any())
        if index % stride == 0:
            for verifier in ("hsd", "token"):
                assert_same_law(batch, [one, other], targets, verifier)
    assert ragged, "no two trees of other shapes: the test is empty"
    assert padded or settings.width is None


@pytest.mark.parametrize("settings", [TreeSettings(16, 4), TreeSettings(24, 6, 5), TreeSettings(60, 7, beta=0.3)])
def test_seven_rows_with_numbers_of_their_own_get_the_trees_they_get_alone(settings):
    """The real draft, with uniform numbers: those of a level begin at a column that no other row moves."""
    tables = [(MoodyTable if row % 2 else Table)(40, seed=row, sharpness=0.5 + row) for row in range(7)]
    numbers = uniforms(7, hybrid.uniforms(settings), generator=torch.Generator().manual_seed(0))
    batch = hybrid.build(draft_of(tables, numbers), settings)
    assert len({tuple(depths) for depths in batch.depths.tolist()}) > 1
    for row, table in enumerate(tables):
        assert_same(batch, row, hybrid.build(draft_of([table], numbers[row : row + 1]), settings))


def test_equally_likely_tokens_are_chosen_as_they_are_alone():
    """Draft distributions with many ties and zeros, as top-k, bfloat16 or a replaced distribution make them."""
    settings = TreeSettings(12, 3, beta=0.4)
    tables = [Table(40, seed=1), Table(40, seed=2, sharpness=0.0), Table(40, seed=3, sharpness=6.0, zeros=0.95)]
    numbers = uniforms(3, hybrid.uniforms(settings), generator=torch.Generator().manual_seed(3))
    batch = hybrid.build(draft_of(tables, numbers), settings)
    for row, table in enumerate(tables):
        assert_same(batch, row, hybrid.build(draft_of([table], numbers[row : row + 1]), settings))


def draft_of(tables: list[Table], numbers: torch.Tensor) -> Draft:
    drafter = TableDrafter(*tables)
    return Draft(drafter, torch.zeros(len(tables), dtype=torch.int64), drafter.root_logits, softmax, numbers)
