"""What callers rely on: shapes, errors that say what to do, layouts, no host synchronisation in `decide`."""

import random
import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import hsd
from tests.hsd.random_trees import drawn, random_probs, random_tree, uniforms
from tests.reference import scalar


def tensor(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def example() -> tuple[hsd.DraftTree, torch.Tensor]:
    """The tree shown in hsd/tree.py; nodes 1, 3 and 6 are sampled."""
    generator = torch.Generator().manual_seed(0)
    tree = hsd.DraftTree(
        tensor(0, 1, 2, 3, 4, 0, 1),
        tensor(-1, 0, 0, 1, 1, 2, 5),
        tensor(-1, 0, -1, 1, -1, -1, 2),
        random_probs(3, 5, generator),
    )
    return tree, random_probs(7, 5, generator)


def test_topology_of_the_example() -> None:
    topo = hsd.topology(example()[0].parents)
    assert topo.depth.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert topo.post.tolist() == [6, 2, 5, 0, 1, 4, 3]
    assert topo.ancestors.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("verifier", ["hsd", "token", "greedy"])
def test_verify_and_decide_agree(verifier: str) -> None:
    for seed in range(20):
        tree, target = random_tree(seed, nodes=10)
        path, token = hsd.verify(tree, target, verifier, torch.Generator().manual_seed(seed))
        batch = hsd.TreeBatch.of_one(tree)
        numbers = uniforms(1, hsd.DRAWS, generator=torch.Generator().manual_seed(seed))
        decision = hsd.decide(batch, target[None], verifier, numbers)
        decision = hsd.Decision(*(field[0] for field in decision))
        assert path[0] == 0
        assert path[-1] == decision.path[decision.accepted]
        assert len(path) == decision.accepted + 1
        assert decision.path.tolist()[: len(path)] == path.tolist()
        assert (decision.path[len(path) :] == -1).all()
        assert tree.parents[path[1:]].tolist() == path[:-1].tolist()
        assert token == decision.token
        assert token.dtype == path.dtype == torch.int64
        assert token.dim() == 0
        assert target[path[-1], token] > 0
        law = hsd.stopping_law(tree, target, verifier)
        assert law.stop[path[-1]] > 0
        assert torch.allclose(decision.expected_accepted, law.expected_accepted, rtol=1e-14)


def test_draws_follow_the_law() -> None:
    """Chi-square of 20,000 (node, token) pairs against the exact distribution; false alarm rate 1e-3, fixed seed."""
    tree, target = random_tree(5, nodes=6, vocabulary=4)
    law = hsd.stopping_law(tree, target)
    joint = torch.stack([law.stop[v] * law.residual(v) for v in range(6)]).flatten()
    generator, counts, n = torch.Generator().manual_seed(1), torch.zeros(24, dtype=torch.float64), 20_000
    nodes = drawn(law.stop.expand(n, -1), generator)
    rows = torch.stack([law.residual(v) for v in range(6)])
    tokens = drawn(rows[nodes], generator)
    counts.scatter_add_(0, nodes * 4 + tokens, torch.ones(n, dtype=torch.float64))
    possible = joint > 0
    assert (counts[~possible] == 0).all()
    statistic = ((counts - n * joint)[possible] ** 2 / (n * joint)[possible]).sum()
    from scipy.stats import chi2

    assert statistic < chi2.isf(1e-3, int(possible.sum()) - 1)


def test_the_scalar_loop_samples_the_same_law() -> None:
    """The tests' accept/reject loop, run with real coins: mean accepted within 5 standard errors."""
    tree, target = random_tree(8, nodes=8, vocabulary=4)
    plain, rng = scalar.from_draft(tree, target), random.Random(0)
    depth = hsd.topology(tree.parents).depth.tolist()
    accepted = [depth[scalar.sample("hsd", plain, rng)[0]] for _ in range(4000)]
    law = hsd.stopping_law(tree, target)
    mean = float(law.expected_accepted)
    deviation = sum(float(s) * (d - mean) ** 2 for s, d in zip(law.stop, depth)) ** 0.5
    assert abs(sum(accepted) / 4000 - mean) < 5 * deviation / 4000**0.5


def test_draw_shapes_and_zeros() -> None:
    probs = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    tokens = drawn(probs.expand(500, 2, 3), torch.Generator().manual_seed(0))
    assert tokens.shape == (500, 2)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == 1).all()
    assert set(tokens[:, 1].tolist()) == {0, 2}
    for number in (0.0, 0.5, 1 - 2**-53):
        assert hsd.draw(torch.tensor([0.0, 0.0, 3.0]), torch.tensor(number, dtype=torch.float64)) == 2
    tail = torch.full((1000,), 1e-9, dtype=torch.float64)
    tail[0] = 1.0
    assert (drawn(tail.expand(2000, -1), torch.Generator().manual_seed(0)) == 0).float().mean() > 0.99


WRONG = {
    "parents[0] is 0": lambda t, p: (replace(t, parents=tensor(0, 0, 0, 1, 1, 2, 5)), p),
    "parents[3] is 4": lambda t, p: (replace(t, parents=tensor(-1, 0, 0, 4, 1, 2, 5)), p),
    "parents[2] is -1": lambda t, p: (replace(t, parents=tensor(-1, 0, -1, 1, 1, 2, 5)), p),
    "tokens[4] is 5": lambda t, p: (replace(t, tokens=tensor(0, 1, 2, 3, 5, 0, 1)), p),
    "proposal_rows[1] is 3": lambda t, p: (replace(t, proposal_rows=tensor(-1, 3, -1, 1, -1, -1, 2)), p),
    "proposal_rows[0] is 0": lambda t, p: (replace(t, proposal_rows=tensor(0, 0, -1, 1, -1, -1, 2)), p),
    "target_probs[2] sums to 2": lambda t, p: (t, p.index_fill(0, tensor(2), 0.4)),
    "target_probs[1] has the entry nan": lambda t, p: (t, p.index_fill(0, tensor(1), torch.nan)),
    "target_probs[0] has the entry -": lambda t, p: (t, torch.cat((p[:1] - 0.2, p[1:]))),
    "sums to 0.5": lambda t, p: (replace(t, proposals=t.proposals / 2), p),
    "node 1 has the token 1": lambda t, p: (replace(t, proposals=drop(t.proposals, 1)), p),
    "target_probs is": lambda t, p: (t, p[:6]),
    "proposals have 4 columns": lambda t, p: (replace(t, proposals=t.proposals[:, :4]), p),
    "layout": lambda t, p: (replace(t, layout=hsd.Layout.topk(3)), p),
    "support has a token id twice": lambda t, p: (replace(t, support=tensor(0, 1, 2, 3, 3)), p),
    "support[4] is 9": lambda t, p: (replace(t, support=tensor(0, 1, 2, 3, 9)), p),
}


def drop(proposals: torch.Tensor, token: int) -> torch.Tensor:
    kept = proposals.index_fill(1, tensor(token), 0)
    return kept / kept.sum(-1, keepdim=True)


@pytest.mark.parametrize("message", WRONG)
def test_bad_values_are_named(message: str) -> None:
    tree, target = WRONG[message](*example())
    for call in (hsd.stopping_law, hsd.verify):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(tree, target)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", torch.zeros(7)),
        ("parents", tensor(-1, 0)),
        ("proposal_rows", torch.zeros(7, dtype=torch.int32)),
        ("proposals", torch.zeros(3)),
        ("support", tensor(0, 1)),
        ("tokens", torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_bad_shapes_and_dtypes_are_named(field: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=field):
        replace(example()[0], **{field: value})


def test_unknown_verifiers_and_branching_trees() -> None:
    tree, target = example()
    with pytest.raises(ValueError, match=", ".join(sorted(hsd.VERIFIERS))):
        hsd.verify(tree, target, "nonsense")
    for verifier in ("block", "published"):
        with pytest.raises(ValueError, match="single path"):
            hsd.verify(tree, target, verifier)


def hybrid_tree() -> tuple[hsd.DraftTree, torch.Tensor]:
    """Levels of 3, 3, 2 nodes with 1, 2, 1 sampled."""
    generator = torch.Generator().manual_seed(3)
    q = random_probs(4, 6, generator)
    parents = tensor(-1, 0, 0, 0, 1, 2, 1, 4, 4)
    rows = tensor(-1, 0, -1, -1, 1, 2, -1, 3, -1)
    tokens = torch.randint(6, (9,), generator=generator)
    return (
        hsd.DraftTree(tokens, parents, rows, q, layout=hsd.Layout.levels((3, 3, 2), (1, 2, 1))),
        random_probs(9, 6, generator),
    )


def multi_tree() -> tuple[hsd.DraftTree, torch.Tensor]:
    """Three paths of three tokens."""
    generator = torch.Generator().manual_seed(4)
    q = random_probs(7, 6, generator)
    rows = tensor(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6)
    tokens = torch.cat((tensor(0), drawn(q[rows[1:]], generator)))
    parents = tensor(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6)
    return hsd.DraftTree(tokens, parents, rows, q, layout=hsd.Layout.siblings((3, 3, 3))), random_probs(
        10, 6, generator
    )


def topk_tree() -> tuple[hsd.DraftTree, torch.Tensor]:
    """Depth 2, with a generous bound of 4, nodes in no particular order."""
    generator = torch.Generator().manual_seed(5)
    tree = hsd.DraftTree(
        tensor(0, 1, 2, 3, 4, 1), tensor(-1, 0, 1, 0, 3, 1), torch.full((6,), -1), layout=hsd.Layout.topk(4)
    )
    return tree, random_probs(6, 6, generator)


def chain_tree() -> tuple[hsd.DraftTree, torch.Tensor]:
    tree, target = random_tree(6, nodes=5, chain=True, sampled=1.0, support=4)
    return replace(tree, layout=hsd.Layout.chain(4)), target


def fields(batch: hsd.TreeBatch) -> list[torch.Tensor]:
    """tokens, parents, depths, proposal_rows, and proposals where there are any."""
    values = (batch.tokens, batch.parents, batch.depths, batch.proposal_rows, batch.proposals)
    return [value for value in values if value is not None]


BUILT = {"hybrid": hybrid_tree, "multi": multi_tree, "top-k": topk_tree, "chain": chain_tree}


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("verifier", ["hsd", "token", "block"])
def test_a_layout_changes_nothing(kind: str, verifier: str) -> None:
    tree, target = BUILT[kind]()
    if verifier == "block" and kind != "chain":
        pytest.skip("single paths only")
    with_layout = hsd.stopping_law(tree, target, verifier)
    without = hsd.stopping_law(replace(tree, layout=None), target, verifier)
    assert torch.allclose(with_layout.stop, without.stop, rtol=0, atol=1e-14)
    for node in range(len(tree)):
        assert torch.allclose(with_layout.residual(node), without.residual(torch.tensor(node)), atol=1e-13)


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("verifier", ["hsd", "token", "greedy", "block", "published"])
def test_decide_never_waits_for_the_device(kind: str, verifier: str) -> None:
    """Fake tensors have no values: anything that would read one on the host raises."""
    tree, target = BUILT[kind]()
    if verifier in ("block", "published") and kind != "chain":
        pytest.skip("single paths only")
    real = [field.repeat(3, *[1] * (field.dim() - 1)) for field in (*fields(hsd.TreeBatch.of_one(tree)), target[None])]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(field) for field in real]
        support = None if tree.support is None else mode.from_tensor(tree.support)
        proposals = fake[4] if tree.proposals is not None else None
        numbers = torch.rand(3, hsd.DRAWS, dtype=torch.float64)
        decision = hsd.decide(hsd.TreeBatch(*fake[:4], proposals, support, tree.layout), fake[-1], verifier, numbers)
    assert decision.path.shape == (3, tree.layout.depth + 1)
    assert decision.token.shape == decision.accepted.shape == decision.expected_accepted.shape == (3,)


def test_the_check_above_would_notice() -> None:
    tree, target = hybrid_tree()
    real = [*fields(hsd.TreeBatch.of_one(tree)), target[None]]
    with FakeTensorMode() as mode:
        *fake, probs = [mode.from_tensor(field) for field in real]
        batch = hsd.TreeBatch(*fake, None, tree.layout)
        with pytest.raises(DataDependentOutputException):
            hsd.decide(batch, probs, "hsd", torch.rand(1, hsd.DRAWS, dtype=torch.float64), check=True)


def test_repeats_of_a_topk_sibling_are_padding() -> None:
    tree, target = topk_tree()
    padded = hsd.DraftTree(
        torch.cat((tree.tokens, tensor(1, 1))),
        torch.cat((tree.parents, tensor(0, 0))),
        torch.full((8,), -1),
        layout=tree.layout,
    )
    more = torch.cat((target, target[:2]))
    for verifier in ("hsd", "token", "greedy"):
        stop = hsd.stopping_law(padded, more, verifier).stop
        assert torch.allclose(stop[:6], hsd.stopping_law(tree, target, verifier).stop, atol=1e-14)
        assert (stop[6:] == 0).all()


@pytest.mark.parametrize("kind", ["hybrid", "multi", "top-k"])
@pytest.mark.parametrize("verifier", ["hsd", "token", "greedy"])
def test_padding_is_never_accepted_and_takes_nothing(kind: str, verifier: str) -> None:
    """Whatever its token is, and on whatever node it hangs."""
    tree, target = BUILT[kind]()
    law = hsd.stopping_law(tree, target, verifier)
    nodes = len(tree)
    for token in range(6):
        padded = hsd.DraftTree(
            torch.cat((tree.tokens, tensor(token, token))),
            torch.cat((tree.parents, tensor(0, nodes - 1))),
            torch.cat((tree.proposal_rows, tensor(-2, -2))),
            tree.proposals,
            layout=hsd.Layout((*tree.layout.rounds, ()), tree.layout.sampled_first),
        )
        found = hsd.stopping_law(padded, torch.cat((target, target[:2])), verifier)
        assert torch.allclose(found.stop[:nodes], law.stop, atol=1e-14) and (found.stop[nodes:] == 0).all()
        for node in range(nodes):
            mine, theirs = (law.stop[node] * one.residual(node) for one in (found, law))
            assert torch.allclose(mine, theirs, atol=1e-14)


def test_inputs_are_not_changed() -> None:
    tree, target = multi_tree()
    copies = [value.clone() for value in (tree.tokens, tree.parents, tree.proposals, target)]
    for verifier in ("hsd", "token", "greedy"):
        hsd.verify(tree, target, verifier)
    now = (tree.tokens, tree.parents, tree.proposals, target)
    assert all(torch.equal(*pair) for pair in zip(copies, now))
