"""Large vocabularies, low precision, extreme temperatures, truncation, long paths: distributions stay distributions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hsd
from tests.hsd.random_trees import drawn, random_tree, residuals

TREE_VERIFIERS = ("hsd", "token")
PATH_VERIFIERS = ("hsd", "token", "block")


def assert_distributions(tree: hsd.DraftTree, target: torch.Tensor, verifier: str, tolerance: float = 1e-6) -> None:
    """Stop and every residual that can be used are distributions; nothing with p = 0 can be emitted."""
    law = hsd.stopping_law(tree, target, verifier)
    assert law.stop.isfinite().all()
    assert (law.stop >= 0).all()
    assert abs(law.stop.sum().item() - 1) < tolerance
    depth = hsd.topology(tree.parents).depth
    assert law.expected_accepted.item() == pytest.approx((law.stop * depth).sum().item())
    bonus = residuals(law, len(tree))
    assert bonus.isfinite().all()
    assert (bonus >= 0).all()
    assert torch.allclose(bonus.sum(-1), torch.ones(()).to(bonus), atol=1e-5)
    assert (bonus[target == 0] == 0).all()
    below_zero = target[tree.parents.clamp(min=0), tree.tokens] == 0
    assert (law.stop[below_zero & (tree.parents >= 0)] == 0).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(1, 14),
    vocabulary=st.integers(2, 9),
    sampled=st.sampled_from([0.0, 0.5, 1.0]),
    temperature=st.floats(0.05, 2.0),
    keep=st.integers(0, 3),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    like_target=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_results_are_distributions(seed, nodes, vocabulary, sampled, temperature, keep, dtype, like_target) -> None:
    tree, target = random_tree(seed, nodes, vocabulary, sampled, like_target=like_target, keep=min(keep, vocabulary))
    target = torch.where(target > 0, target ** (1 / temperature), 0)
    target = target / target.sum(-1, keepdim=True)
    for verifier in TREE_VERIFIERS:
        assert_distributions(replace(tree, proposals=_in(tree.proposals, dtype)), target.to(dtype), verifier)


def _in(proposals, dtype):
    """float64 stays; the others are sampled in float32 at the least, as an engine does."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return None if proposals is None else proposals.to(wide)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    like_target=st.sampled_from([0.0, 0.99, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_paths_of_32_tokens(seed, like_target, dtype) -> None:
    tree, target = random_tree(seed, 33, 50, sampled=0.95, chain=True, like_target=like_target)
    tree = replace(tree, proposals=tree.proposals.to(dtype))
    laws = {name: hsd.stopping_law(tree, target.to(dtype), name) for name in PATH_VERIFIERS}
    for name in PATH_VERIFIERS:
        assert_distributions(tree, target.to(dtype), name)
    atol = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.allclose(laws["hsd"].stop, laws["block"].stop, rtol=0, atol=atol)


def test_hsd_equals_block_on_paths() -> None:
    for seed in range(60):
        tree, target = random_tree(
            seed,
            nodes=1 + seed % 12,
            vocabulary=7,
            sampled=0.9,
            chain=True,
            keep=(0, 3)[seed % 2],
            like_target=(0.0, 0.5, 1.0)[seed % 3],
        )
        one, other = (hsd.stopping_law(tree, target, name) for name in ("hsd", "block"))
        assert torch.allclose(one.stop, other.stop, rtol=0, atol=1e-12)
        emitted = (law.stop[:, None] * residuals(law, len(tree)) for law in (one, other))
        assert torch.allclose(*emitted, rtol=0, atol=1e-12)


def test_ratios_neither_underflow_nor_overflow() -> None:
    """Joint probabilities of 1e-320 and ratios of 1e+-10 per token: still distributions, still equal to float64."""
    vocabulary, length = 4, 32
    p = torch.tensor([1e-10, 1 - 3e-10, 1e-10, 1e-10], dtype=torch.float64)
    for tokens in ([0] * length, [1] * length, [0, 1] * (length // 2)):
        tree = hsd.DraftTree(
            torch.tensor([0, *tokens]),
            torch.arange(length + 1) - 1,
            torch.where(torch.arange(length + 1) > 0, 0, -1),
            torch.full((1, vocabulary), 0.25, dtype=torch.float64),
        )
        target = p.expand(length + 1, -1)
        wide = hsd.stopping_law(tree, target, "hsd").stop
        low = replace(tree, proposals=tree.proposals.float())
        for verifier in PATH_VERIFIERS:
            assert_distributions(low, target.float(), verifier)
        assert torch.allclose(hsd.stopping_law(low, target.float(), "hsd").stop.double(), wide, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_a_real_vocabulary(dtype, temperature) -> None:
    """151,936 tokens, a draft vocabulary of 32,000, 24 nodes, top-p truncated target."""
    vocabulary, nodes = 151_936, 24
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(nodes, vocabulary, generator=generator) / temperature
    target = logits.softmax(-1)
    target = target.masked_fill(target < target.topk(5000).values[:, -1:], 0)
    target = (target / target.sum(-1, keepdim=True)).to(dtype)
    support = torch.randperm(vocabulary, generator=generator)[:32_000].sort().values
    small, _ = random_tree(3, nodes, 10, sampled=0.6)
    sampled = small.proposal_rows >= 0
    noise = torch.randn(int(sampled.sum()), 32_000, generator=generator)
    q = (logits[small.parents[sampled]][:, support] + noise).softmax(-1)
    tokens = torch.randint(vocabulary, (nodes,), generator=generator)
    tokens[sampled] = support[drawn(q, generator)]
    rows = torch.where(sampled, sampled.cumsum(0) - 1, -1)
    tree = hsd.DraftTree(tokens, small.parents, rows, q, support)
    for verifier in TREE_VERIFIERS:
        assert_distributions(tree, target, verifier)
        wide = target.double() / target.double().sum(-1, keepdim=True)
        exact = hsd.stopping_law(tree, wide, verifier)
        assert torch.allclose(hsd.stopping_law(tree, target, verifier).stop.double(), exact.stop, atol=2e-5)


def test_draft_equal_to_the_target_accepts_everything() -> None:
    for dtype in (torch.float32, torch.float64):
        tree, target = random_tree(4, 12, 1000, sampled=1.0, chain=True)
        p = target.to(dtype)
        tokens = drawn(p[:-1], torch.Generator().manual_seed(0))
        same = hsd.DraftTree(
            torch.cat((torch.zeros(1, dtype=torch.int64), tokens)), tree.parents, torch.arange(12) - 1, p[:-1]
        )
        for verifier in PATH_VERIFIERS:
            assert hsd.stopping_law(same, p, verifier).stop[-1].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("verifier", ["hsd", "token", "block"])
@pytest.mark.parametrize("support", [0, 20])
def test_somebody_s_settings_for_products_change_nothing(verifier, support):
    """Training scripts run under autocast and with fast float32 products; probabilities are summed, not multiplied."""
    tree, target = random_tree(3, nodes=14, vocabulary=40, support=support, chain=verifier == "block")
    assert tree.proposals is not None
    tree = replace(tree, proposals=tree.proposals.float())
    law = hsd.stopping_law(tree, target.float(), verifier)
    expected = [law.stop, law.expected_accepted, *(law.residual(node) for node in range(len(tree)))]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            law = hsd.stopping_law(tree, target.float(), verifier)
            found = [law.stop, law.expected_accepted, *(law.residual(node) for node in range(len(tree)))]
    finally:
        torch.set_float32_matmul_precision(before)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
