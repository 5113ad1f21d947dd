"""Draws and decisions in one native call give what the tensors give."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import hsd
from hsd import native
from hsd.verifiers.inputs import VerifierInput
from tests.hsd.random_trees import random_probs, random_tree, uniforms

pytestmark = pytest.mark.skipif(
    native.LIBRARY.unavailable is not None, reason=f"no native code: {native.LIBRARY.unavailable}"
)
TREES = [
    {
        "nodes": 1 + seed % 12,
        "support": (0, 4)[seed % 2],
        "sampled": (0.0, 0.5, 1.0)[seed % 3],
        "keep": (0, 2)[seed % 5 > 2],
    }
    for seed in range(60)
]


def by_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.LIBRARY, "unavailable", "not in this test")


def assert_same(one: hsd.Decision, other: hsd.Decision, tolerance: float) -> None:
    for name in ("path", "accepted", "token"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.allclose(one.stop, other.stop, rtol=0, atol=tolerance)
    assert torch.allclose(one.expected_accepted, other.expected_accepted, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("verifier", native.RULES)
@pytest.mark.parametrize("seed", range(len(TREES)))
def test_decisions_are_the_tensors(seed: int, verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any tree: any order of top-k and sampled children, repeats, zeros, draft vocabularies."""
    tree, target = random_tree(seed, **TREES[seed])
    batch = hsd.TreeBatch.of_one(tree)
    numbers = uniforms(12, 1, hsd.DRAWS, generator=torch.Generator().manual_seed(seed))
    found = [hsd.decide(batch, target[None], verifier, number) for number in numbers]
    by_tensors(monkeypatch)
    for decision, number in zip(found, numbers):
        assert_same(decision, hsd.decide(batch, target[None], verifier, number), 1e-14)


@pytest.mark.parametrize("nodes", [1, 2, 17])
def test_rows_of_a_batch_are_decided_alone(nodes: int) -> None:
    """Numbers that lie apart in memory, too."""
    found = [random_tree(seed, nodes=nodes, chain=True, sampled=1.0) for seed in range(5)]
    batches = [hsd.TreeBatch.of_one(tree) for tree, _ in found]
    names = ("tokens", "parents", "depths", "proposal_rows")
    fields = [torch.cat([getattr(one, name) for one in batches]) for name in names]
    proposals = None if nodes == 1 else torch.cat([one.proposals for one in batches])
    batch = hsd.TreeBatch(*fields, proposals, None, batches[0].layout)
    target = torch.stack([p for _, p in found])
    numbers = uniforms(5, 7, generator=torch.Generator().manual_seed(1))[:, 3:5]
    together = hsd.decide(batch, target, "hsd", numbers)
    for row, (one, p) in enumerate(zip(batches, target)):
        alone = hsd.decide(one, p[None], "hsd", numbers[row : row + 1])
        assert_same(hsd.Decision(*(field[row : row + 1] for field in together)), alone, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 4096, 50_003])
def test_draws_are_the_tensors(vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    probs = random_probs(40, vocabulary, generator).to(dtype)
    probs[::2] *= torch.rand(20, vocabulary, generator=generator) < 0.1
    probs[:, -1] += 1e-3  # a positive sum
    numbers = uniforms(40, generator=generator)
    numbers[:2] = torch.tensor([0, 1 - 2**-53])
    found = hsd.draw(probs, numbers)
    assert (probs.gather(1, found[:, None]) > 0).all()
    by_tensors(monkeypatch)
    exact = hsd.draw(probs.double(), numbers)
    assert torch.equal(found, exact)


def test_a_draw_without_numbers_to_draw_from_stays_within_the_row() -> None:
    probs = torch.tensor([[torch.nan] * 3, [0.0] * 3, [1.0, torch.nan, 0.0]])
    assert (hsd.draw(probs, torch.full((3,), 0.5, dtype=torch.float64)) < 3).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", 6), ("tokens", -1), ("parents", 5), ("parents", -1), ("proposal_rows", 99), ("depths", 9)],
)
def test_an_index_that_points_nowhere_is_refused(field: str, value: int) -> None:
    """Also where nothing is checked: memory behind the tensors is not read."""
    tree, target = random_tree(3, nodes=5)
    batch = hsd.TreeBatch.of_one(tree)
    getattr(batch, field)[0, 4] = value
    with pytest.raises(ValueError, match="out of range.*check=True"):
        hsd.decide(batch, target[None], "hsd", torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (0, 2), (2,)])
def test_numbers_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    tree, target = random_tree(3, nodes=5)
    one = hsd.TreeBatch.of_one(tree)
    fields = [getattr(one, name).expand(3, -1) for name in ("tokens", "parents", "depths", "proposal_rows")]
    proposals = None if one.proposals is None else one.proposals.expand(3, -1, -1)
    batch = hsd.TreeBatch(*fields, proposals, one.support, one.layout)
    with pytest.raises(ValueError, match=r"uniforms is .* expected \[3, 2\]"):
        hsd.decide(batch, target.expand(3, -1, -1), "hsd", torch.zeros(shape, dtype=torch.float64))


def test_what_lies_elsewhere_or_is_no_number_goes_through_tensors_or_stays_visible() -> None:
    """A default device does not matter, tensors elsewhere are not read, and NaN in p is NaN in the law."""
    tree, target = random_tree(3, nodes=5)
    batch, numbers = hsd.TreeBatch.of_one(tree), torch.full((1, 2), 0.5, dtype=torch.float64)
    expected = hsd.decide(batch, target[None], "hsd", numbers)
    with torch.device("meta"):
        assert_same(hsd.decide(batch, target[None], "hsd", numbers), expected, 0)
        assert hsd.draw(target, numbers.new_full((5,), 0.5)).device.type == "cpu"
    assert not native.LIBRARY.reads(target, numbers.to("meta"))
    assert hsd.decide(batch, torch.full_like(target[None], torch.nan), "hsd", numbers).stop.isnan().any()


def test_a_rule_that_cannot_be_hashed_is_called() -> None:
    @dataclass
    class Own:
        calls: int = 0

        def __call__(self, inputs: VerifierInput) -> hsd.StopDistribution:
            self.calls += 1
            return hsd.VERIFIERS["hsd"].stop_distribution(inputs)

    tree, target = random_tree(3, nodes=5)
    own = Own()
    hsd.verify(tree, target, hsd.Verifier(own, lossless=True, scope="tree"))
    assert own.calls == 1


def test_half_precision_is_raised_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, target = random_tree(8, nodes=6)
    batch, numbers = hsd.TreeBatch.of_one(tree), torch.full((1, 2), 0.4, dtype=torch.float64)
    found = hsd.decide(batch, target[None].bfloat16(), "hsd", numbers)
    by_tensors(monkeypatch)
    assert_same(found, hsd.decide(batch, target[None].bfloat16(), "hsd", numbers), 1e-6)
