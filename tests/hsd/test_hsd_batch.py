"""A batch of trees is decided as its rows are, one by one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hsd
from hsd.verifiers import find_verifier
from hsd.verify import _solve
from tests.hsd.random_trees import drawn, random_probs, uniforms
from tests.reference import scalar

VOCABULARY = 7


def stack(
    parents: list[list[int]], sampled: list[list[bool]], layout: hsd.Layout, seed: int, support: bool, keep: int = 0
) -> tuple[hsd.TreeBatch, Tensor]:
    """Trees of given shapes with random tokens and distributions -> (batch, target probs Float64[B, N, V])."""
    generator = torch.Generator().manual_seed(seed)
    count, nodes = len(parents), len(parents[0])
    width = 5 if support else VOCABULARY
    columns = torch.randperm(VOCABULARY, generator=generator)[:width] if support else torch.arange(VOCABULARY)
    q = torch.stack([random_probs(nodes, width, generator, keep) for _ in range(count)])
    rows = torch.where(torch.tensor(sampled), torch.randperm(nodes, generator=generator), -1)
    token = columns[drawn(q.gather(1, rows.clamp(min=0)[:, :, None].expand(-1, -1, width)), generator)]
    other = torch.randint(VOCABULARY, (count, nodes), generator=generator)
    ups = torch.tensor(parents)
    batch = hsd.TreeBatch(
        torch.where(rows >= 0, token, other),
        ups,
        hsd.ancestors_of(ups).sum(-1) - 1,
        rows,
        q if layout.max_draws else None,
        columns if support and layout.max_draws else None,
        layout,
    )
    return batch, torch.stack([random_probs(nodes, VOCABULARY, generator, keep) for _ in range(count)])


def shapes(kind: str, count: int, seed: int) -> tuple[list[list[int]], list[list[bool]], hsd.Layout]:
    """Parents and sampled flags of `count` trees of one layout; rows of hybrid, siblings and topk differ."""
    generator = torch.Generator().manual_seed(seed)
    below = lambda start, stop: int(torch.randint(start, stop, (1,), generator=generator))
    coin = lambda: bool(torch.rand((), generator=generator) < 0.7)
    if kind == "chain":
        return (
            [[-1, 0, 1, 2]] * count,
            [[False, *(coin() for _ in range(3))] for _ in range(count)],
            hsd.Layout.chain(3),
        )
    if kind == "multi":
        return [[-1, 0, 0, 0, 1, 2, 3, 4, 5, 6]] * count, [[False] + [True] * 9] * count, hsd.Layout.siblings((3, 3, 3))
    if kind == "topk":
        return (
            [[-1, *(below(0, i) for i in range(1, 8))] for _ in range(count)],
            [[False] * 8] * count,
            hsd.Layout.topk(7),
        )
    if kind == "hybrid":  # levels of 3, 4, 2 nodes, of which 1, 3, 2 may be sampled, one per parent and tried first
        parents, sampled = [], []
        for _ in range(count):
            second = [1, 2, 3, below(1, 4)]
            third = [4 + below(0, 2), 6 + below(0, 2)]
            parents.append([-1, 0, 0, 0, *second, *third])
            sampled.append([False, coin(), False, False, coin(), coin(), coin(), False, coin(), coin()])
        return parents, sampled, hsd.Layout.levels((3, 4, 2), (1, 3, 2))
    if kind == "siblings":  # levels of 3, 4, 3 nodes; a parent has any number of sampled children, rows differ
        rows = [sibling_levels((3, 4, 3), below, coin) for _ in range(count)]
        return [row[0] for row in rows], [row[1] for row in rows], hsd.Layout.siblings((3, 4, 3))
    parents = [-1, *(below(0, i) for i in range(1, 9))]  # any tree, sampled and top-k siblings in any order
    sampled = [False, *(coin() for _ in range(8))]
    return [parents] * count, [sampled] * count, hsd.Layout.infer(parents, sampled)


def sibling_levels(sizes: tuple[int, ...], below, coin) -> tuple[list[int], list[bool]]:
    """Parents and sampled flags: first children of a level before second ones, sampled before top-k siblings."""
    parents, sampled, first, above = [-1], [False], 0, 1
    for size in sizes:
        ups = sorted(below(first, first + above) for _ in range(size))
        ups = [up for _, up in sorted((ups[:place].count(up), up) for place, up in enumerate(ups))]
        flags = []
        for place, up in enumerate(ups):
            flags.append(coin() and all(flag for flag, other in zip(flags, ups[:place]) if other == up))
        parents, sampled = parents + ups, sampled + flags
        first, above = first + above, size
    return parents, sampled


def rowwise(batch: hsd.TreeBatch, target: Tensor, verifier: str, tolerance: float) -> None:
    """stop, residuals and E[accepted] of the batch equal those of every row alone."""
    inputs, distribution = _solve(batch, target, verifier)
    expected = (distribution.stop * inputs.topo.depth).sum(1)
    count, nodes = batch.tokens.shape
    every = [distribution.residual(torch.full((count,), node)) for node in range(nodes)]
    for row in range(count):
        alone = hsd.stopping_law(batch.row(row), target[row], verifier)
        assert torch.allclose(distribution.stop[row], alone.stop, rtol=tolerance, atol=tolerance / 100)
        assert torch.allclose(expected[row], alone.expected_accepted, rtol=tolerance)
        for node in range(nodes):
            mine, theirs = every[node][row], alone.residual(node)
            assert torch.allclose(
                alone.stop[node] * mine, alone.stop[node] * theirs, rtol=tolerance, atol=tolerance / 10
            )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["chain", "multi", "topk", "hybrid", "siblings", "any"]),
    count=st.integers(1, 5),
    support=st.booleans(),
    keep=st.sampled_from([0, 0, 3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_batch_is_its_rows(seed, kind, count, support, keep, dtype) -> None:
    batch, target = stack(*shapes(kind, count, seed), seed, support, keep)
    if batch.proposals is not None:
        batch = replace(batch, proposals=batch.proposals.to(dtype))
    for verifier, entry in hsd.VERIFIERS.items():
        if entry.scope != "path" or kind == "chain":
            rowwise(batch, target.to(dtype), verifier, 1e-12 if dtype == torch.float64 else 1e-5)


def numbers_of(rows: int, seed: int) -> Tensor:
    """The numbers of one decision per row."""
    return uniforms(rows, hsd.DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("verifier", ["hsd", "token", "greedy"])
@pytest.mark.parametrize("kind", ["hybrid", "topk", "multi", "siblings", "any"])
def test_decisions_of_a_batch_are_valid(kind: str, verifier: str) -> None:
    """Paths lead from the root to the drawn node, tokens are possible, E[accepted] is the rows'."""
    batch, target = stack(*shapes(kind, 6, 1), 1, support=True)
    decision = hsd.decide(batch, target, verifier, numbers_of(6, 0), check=True)
    for row in range(6):
        alone = hsd.stopping_law(batch.row(row), target[row], verifier)
        length, path = int(decision.accepted[row]), decision.path[row].tolist()
        node = path[length]
        assert path[0] == 0
        assert set(path[length + 1 :]) <= {-1}
        assert [int(batch.parents[row, v]) for v in path[1 : length + 1]] == path[:length]
        assert alone.stop[node] > 0
        assert alone.residual(node)[decision.token[row]] > 0
        assert torch.allclose(decision.expected_accepted[row], alone.expected_accepted, rtol=1e-12)


@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_a_layout_wider_than_the_tree_changes_nothing(verifier: str) -> None:
    """Which sampled child a node is, is found in the tree: every node may be listed in every round."""
    batch, target = stack(*shapes("any", 4, 11), 11, support=True)
    assert batch.layout.max_draws > 1
    everywhere = ((range(1, 9),) * 8,) * batch.layout.depth
    wide = replace(batch, layout=hsd.Layout(everywhere, batch.layout.sampled_first))
    for (_, exact), (_, found) in [(_solve(batch, target, verifier), _solve(wide, target, verifier))]:
        assert torch.allclose(found.stop, exact.stop, rtol=0, atol=1e-14)
        for node in range(9):
            at = torch.full((4,), node)
            assert torch.allclose(found.residual(at), exact.residual(at), rtol=0, atol=1e-12)


@pytest.mark.parametrize("verifier", ["hsd", "token"])
def test_rows_with_different_numbers_of_siblings_equal_the_scalar_reference(verifier: str) -> None:
    for seed in range(6):
        batch, target = stack(*shapes("siblings", 3, seed), seed, support=bool(seed % 2), keep=seed % 3 and 4)
        _, found = _solve(batch, target, verifier)
        for row in range(3):
            stop, residual = scalar.exact_distribution(verifier, scalar.from_draft(batch.row(row), target[row]))
            assert torch.allclose(found.stop[row], torch.tensor(stop, dtype=torch.float64), rtol=0, atol=1e-12)
            for node, wanted in enumerate(residual):
                if wanted is not None:
                    mine = stop[node] * found.residual(torch.full((3,), node))[row]
                    wanted = stop[node] * torch.tensor(wanted, dtype=torch.float64)
                    assert torch.allclose(mine, wanted, rtol=0, atol=1e-12)


def test_a_row_takes_its_first_number_for_the_node_and_its_second_for_the_token() -> None:
    batch, target = stack(*shapes("hybrid", 4, 2), 2, support=False)
    numbers = numbers_of(4, 5)
    decision = hsd.decide(batch, target, "hsd", numbers)
    alone = [hsd.stopping_law(batch.row(row), target[row]) for row in range(4)]
    nodes = hsd.draw(torch.stack([law.stop for law in alone]), numbers[:, 0])
    tokens = hsd.draw(torch.stack([law.residual(node) for law, node in zip(alone, nodes)]), numbers[:, 1])
    assert torch.equal(decision.path.gather(1, decision.accepted[:, None])[:, 0], nodes)
    assert torch.equal(decision.token, tokens)


def test_a_verifier_object_is_as_good_as_its_name() -> None:
    batch, target = stack(*shapes("hybrid", 3, 3), 3, support=True)
    named, given_ = (
        hsd.decide(batch, target, verifier, numbers_of(3, 0)) for verifier in ("token", find_verifier("token"))
    )
    assert all(torch.equal(*pair) for pair in zip(named, given_))
    with pytest.raises(ValueError, match="'block' takes a single path"):
        hsd.decide(batch, target, find_verifier("block"), numbers_of(3, 0))


def test_rows_and_ancestors() -> None:
    batch, _ = stack(*shapes("hybrid", 3, 4), 4, support=True)
    assert len(batch) == 3
    assert batch.ancestors() is batch.ancestors()
    row = batch.row(2)
    assert torch.equal(batch.ancestors()[2], hsd.ancestors_of(row.parents))
    assert torch.equal(hsd.TreeBatch.of_one(row).depths[0], batch.depths[2])
    assert row.layout == batch.layout
    assert row.tokens.data_ptr() == batch.tokens[2].data_ptr()


WRONG = {
    "depths is": lambda b, p: (replace(b, depths=b.depths[:, 1:]), p),
    "tokens is": lambda b, p: (b.__class__(b.tokens[0], *[getattr(b, name) for name in FIELDS[1:]]), p),
    "proposals is": lambda b, p: (replace(b, proposals=b.proposals[:2]), p),
    "target_probs is": lambda b, p: (b, p[0]),
    "row 1: depths[3] is 2": lambda b, p: (replace(b, depths=_with(b.depths, (1, 3), 2)), p),
    "row 2: parents[0] is 0": lambda b, p: (replace(b, parents=_with(b.parents, (2, 0), 0)), p),
    "row 0: target_probs[4] sums to 2": lambda b, p: (b, _with(p, (0, 4), 2 / 7)),
}
FIELDS = ("tokens", "parents", "depths", "proposal_rows", "proposals", "support", "layout")


def _with(values: Tensor, place: tuple[int, int], value: float) -> Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


@pytest.mark.parametrize("message", WRONG)
def test_bad_batches_are_named(message: str) -> None:
    batch, target = stack(*shapes("hybrid", 3, 4), 4, support=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        hsd.decide(*WRONG[message](batch, target), "hsd", numbers_of(3, 0), check=True)
