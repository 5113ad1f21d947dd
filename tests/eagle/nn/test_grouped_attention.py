"""Heads of a group as one head of more rows: the same attention as stock code, in every family."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from eagle.api.eagle_model import EagleModel
from eagle.nn import grouped_attention as attention
from eagle.nn.target import CachedLM
from tests.eagle.tiny import FAMILIES, VOCAB, WINDOWED, tiny_head, tiny_target, with_prompts

CHAIN = torch.ones(3, 3).tril().bool().expand(2, -1, -1)  # which earlier node each of three sees
PROMPT, COUNTS = torch.tensor([[3, 1, 4, 1, 9], [2, 6, 0, 0, 0]]), torch.tensor([5, 2])


@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2), (6, 1)])
@pytest.mark.parametrize("rows", [1, 5, attention.FEW + 1])
@pytest.mark.parametrize("masks", [1, 3])
def test_it_is_masked_attention(heads, groups, rows, masks):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, rows, heads, 8, generator=generator).transpose(1, 2)  # as models lay it out
    keys, values = torch.randn(2, 3, groups, 20, 8, generator=generator)[..., 4:, :]
    hidden = torch.rand(masks, 1, rows, 16, generator=generator) < 0.4
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(attention.attend_grouped(query, keys, values, mask, 0.3), expected, atol=1e-6)


def scores(family: str, name: str) -> torch.Tensor:
    model = tiny_target(family)
    model.set_attn_implementation(name)
    lm = CachedLM(model, (2, 4, 5), decoder="stock")
    prompts = [row[:count] for row, count in zip(PROMPT.tolist(), COUNTS.tolist())]
    with_prompts(lm, prompts, scratch=3, capacity=140, slack=80)
    lm.extend(torch.arange(40).view(2, 20) % VOCAB, torch.tensor([20, 18]))  # more rows than are grouped
    depths = torch.arange(3).expand(2, -1)
    return lm.score(torch.tensor([[5, 6, 7], [8, 9, 3]]), depths, CHAIN).logits


@torch.no_grad()
@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in WINDOWED])
def test_every_family_scores_the_same(family, monkeypatch):
    rows, attend = [], attention.attend_grouped
    monkeypatch.setattr(attention, "attend_grouped", lambda q, *rest: (rows.append(q.shape[2]), attend(q, *rest))[1])
    assert torch.allclose(scores(family, attention.NAME), scores(family, "sdpa"), atol=1e-4)
    assert rows == [20] * 8 + [3] * 8  # once per layer, not for the prompt


def test_generation_gives_the_same_tokens():
    runs = []
    for name in ("sdpa", attention.NAME):
        target = tiny_target()
        target.set_attn_implementation(name)
        model = EagleModel.from_head(target, tiny_head(target))
        runs.append(model.generate(torch.tensor([[7, 3, 9, 1]]), 30, nodes=12, depth=4, seed=0).tolist())
    assert runs[0] == runs[1]
