"""The written-out gradient against autograd on the formulas, and the formulas' meaning."""

import pytest
import torch

from eagle.nn.native import calls
from eagle.train.fusion import has_compiler
from eagle.train.objective.loss import CPU_BLOCK, Totals, draft_loss, target_probs
from eagle.train.objective.product import product

M, V = 7, 12
SUPPORT = torch.tensor([0, 2, 3, 5, 8, 9, 11])


def plain_loss(z, target_logits, support, acceptance_weight):
    """The same loss by the book, for autograd."""
    p = target_logits.softmax(-1)
    inside = p if support is None else p[:, support]
    weight = torch.ones(len(p)) if support is None else torch.isin(target_logits.argmax(-1), support).float()
    q = z.softmax(-1)
    cross_entropy = -(inside / inside.sum(-1, keepdim=True) * q.log()).sum(-1)
    accepted = torch.minimum(inside, q).sum(-1)
    return (weight * ((1 - acceptance_weight) * cross_entropy + acceptance_weight * (1 - accepted))).sum()


@pytest.mark.parametrize("support", [None, SUPPORT])
@pytest.mark.parametrize("acceptance_weight", [0.0, 0.4, 1.0])
def test_value_and_gradient(support, acceptance_weight):
    torch.manual_seed(0)
    target = 2 * torch.randn(M, V)
    z = torch.randn(M, V if support is None else len(support), requires_grad=True)
    expected = plain_loss(z, target, support, acceptance_weight)
    (gradient,) = torch.autograd.grad(expected, z)
    found = draft_loss(z, target_probs(target, support), acceptance_weight)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found.loss, z)[0], 3 * gradient, atol=1e-6, rtol=1e-4)


def test_accepted_counts_the_mass_outside_the_draft_vocabulary():
    target = torch.zeros(1, V)  # uniform over 12, the draft knows 7 of them
    out = draft_loss(torch.zeros(1, len(SUPPORT)), target_probs(target, SUPPORT))
    torch.testing.assert_close(out.accepted, torch.tensor([len(SUPPORT) / V]))


def test_equal_laws_are_always_accepted():
    z = torch.randn(M, V)
    out = draft_loss(z, target_probs(z, None), 1.0)
    torch.testing.assert_close(out.accepted, torch.ones(M))
    assert out.loss.abs() < 1e-5
    assert out.agree.sum() == M


def test_positions_whose_best_token_cannot_be_drafted_carry_no_loss():
    target = torch.zeros(2, V)
    target[0, 1], target[1, 2] = 5.0, 5.0  # token 1 is outside, token 2 inside
    law = target_probs(target, SUPPORT)
    assert law.weight.tolist() == [0, 1]
    z = torch.zeros(2, len(SUPPORT), requires_grad=True)
    draft_loss(z, law).loss.backward()
    assert z.grad[0].abs().sum() == 0
    assert z.grad[1].abs().sum() > 0


def test_no_rows():
    z = torch.zeros(0, V, requires_grad=True)
    out = draft_loss(z, target_probs(torch.zeros(0, V), None), 0.5)
    out.loss.backward()
    assert out.loss == 0


@pytest.mark.parametrize("fast", [True, False])
def test_totals_do_not_depend_on_the_blocks(monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(calls, "usable", lambda *tensors: False)
    logits = torch.randn(5, CPU_BLOCK // 2)  # two rows to a block
    found = Totals.of(logits)
    torch.testing.assert_close(found.log_sum, logits.logsumexp(-1))
    assert torch.equal(found.likeliest, logits.argmax(-1))
    assert [len(field) for field in Totals.of(logits[:0])] == [0, 0]


ROWS, SCALE = torch.tensor([3, 0, 6, 6]), torch.tensor([0.5, 1.0, 2.0, 0.25])


def test_rows_and_scales():
    torch.manual_seed(0)
    target = target_probs(torch.randn(M, V), SUPPORT)
    z = torch.randn(len(ROWS), len(SUPPORT), requires_grad=True)
    one_by_one = sum(
        scale * draft_loss(z[i : i + 1], target.rows(ROWS[i : i + 1]), 0.3).loss for i, scale in enumerate(SCALE)
    )
    together = draft_loss(z, target, 0.3, ROWS, SCALE).loss
    torch.testing.assert_close(together, one_by_one)
    torch.testing.assert_close(torch.autograd.grad(together, z), torch.autograd.grad(one_by_one, z))


@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_loss_is_the_same():
    torch.manual_seed(0)
    target = target_probs(3 * torch.randn(M, V), SUPPORT)
    z = torch.randn(len(ROWS), len(SUPPORT), requires_grad=True)
    plain, fused = (draft_loss(z, target, 0.3, ROWS, SCALE, fused=on) for on in (False, True))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.autograd.grad(plain.loss, z), torch.autograd.grad(fused.loss, z))


def test_tied_best_tokens_agree():
    z = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    target = target_probs(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]), None)
    assert draft_loss(z, target).agree.tolist() == [1, 0]


def test_the_product_and_its_gradients():
    torch.manual_seed(0)
    x, weight = torch.randn(M, 5, requires_grad=True), torch.randn(V, 5, requires_grad=True)
    upstream = torch.randn(M, V)
    for found, expected in zip(
        torch.autograd.grad((product(x, weight) * upstream).sum(), (x, weight)),
        torch.autograd.grad((x @ weight.t() * upstream).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight).dtype == torch.bfloat16
