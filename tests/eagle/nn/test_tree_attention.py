"""Attention over prefix and tree apart, merged by log-sum-exp, equals masked attention over both."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.nn import tree_attention as attention
from eagle.nn.target import CachedLM
from tests.eagle.tiny import FAMILIES, VOCAB, WINDOWED, tiny_head, tiny_target, with_prompts

#  rows of different lengths (one of them empty), 4 heads over 2 key/value heads, a tree of 5 nodes in 6 slots
LENGTHS = torch.tensor([7, 1, 16, 0])
BATCH, HEADS, GROUPS, NODES, SCRATCH, WINDOW, SIZE = 4, 4, 2, 5, 6, 16, 8
TREE = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0],
    ]
)


def case(dtype=torch.float32):
    """Query, keys and values over scratch and window, and what each node sees of them."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, NODES, SIZE, generator=generator)
    keys, values = (torch.randn(BATCH, GROUPS, SCRATCH + WINDOW, SIZE, generator=generator) for _ in range(2))
    tree = TREE.bool().expand(BATCH, -1, -1)
    committed = (torch.arange(WINDOW) < LENGTHS[:, None])[:, None].expand(-1, NODES, -1)
    return query.to(dtype), keys.to(dtype), values.to(dtype), tree[:, None], torch.cat([tree, committed], -1)[:, None]


def additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def fake_flash(query, keys, values, cache_seqlens, softmax_scale, causal, return_softmax_lse):
    """The contract of flash-attn: [B, n, H, E] in and out, lengths Int32, lse [B, H, n]."""
    assert cache_seqlens.dtype == torch.int32 and not causal and return_softmax_lse
    assert query.shape == (BATCH, NODES, HEADS, SIZE) and keys.shape == (BATCH, WINDOW, GROUPS, SIZE)
    assert keys.stride(-1) == 1
    part = attention.by_torch(*(x.transpose(1, 2) for x in (query, keys, values)), cache_seqlens, softmax_scale)
    lse = part.lse.masked_fill((cache_seqlens == 0)[:, None, None], torch.inf)  # what flash-attn says of no keys
    return part.output.transpose(1, 2), lse


@pytest.mark.parametrize("prefix", [attention.by_torch, attention.by_flex, attention.by_flash])
def test_two_parts_merged_are_masked_attention(monkeypatch, prefix):
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_with_kvcache=fake_flash))
    monkeypatch.setattr(attention, "choose", lambda device, dtype: prefix)
    query, keys, values, tree, visible = case()
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=0.3, enable_gqa=True)
    found, _ = attention.split_prefix(None, query, keys, values, additive(tree), 0.3, prefix_lengths=LENGTHS)
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-5)


def test_half_precision_stays_half_and_close():
    query, keys, values, tree, visible = case(torch.bfloat16)
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=visible, enable_gqa=True)
    found, _ = attention.split_prefix(None, query, keys, values, additive(tree), prefix_lengths=LENGTHS)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.transpose(1, 2), expected, atol=0.03)


def scores(family: str, implementation: str) -> torch.Tensor:
    model = tiny_target(family)
    model.set_attn_implementation(implementation)
    lm = CachedLM(model, (2, 4, 5))
    with_prompts(lm, [[3, 1, 4, 1, 9], [2, 6]], scratch=SCRATCH)
    tokens = torch.arange(2 * NODES).view(2, NODES)
    depths = TREE[:, :NODES].sum(-1).sub(1).expand(2, -1)
    return lm.score(tokens, depths, TREE.bool().expand(2, -1, -1)).logits


@torch.no_grad()
@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in WINDOWED])
def test_every_family_scores_the_same(family, monkeypatch):
    calls, merge = [], attention.merge
    monkeypatch.setattr(attention, "merge", lambda a, b: (calls.append(1), merge(a, b))[1])
    expected = scores(family, "sdpa")
    assert (scores(family, attention.NAME) - expected).abs().max() < 4e-5 * expected.abs().max()  # logits up to 10
    assert len(calls) == 8  # once per layer


@pytest.mark.parametrize("drafts_with", ["head", "lm"])
def test_generation_gives_the_same_tokens(drafts_with):
    runs = []
    for implementation in ("sdpa", attention.NAME):
        target, small = tiny_target(), tiny_target(seed=3, num_hidden_layers=4)
        for lm in (target, small):
            lm.set_attn_implementation(implementation)
        head = drafts_with == "head"
        engine = (
            EagleModel.from_head(target, tiny_head(target))
            if head
            else EagleModel(target, CausalLMDrafter(small, VOCAB))
        )
        generator = torch.Generator().manual_seed(0)
        runs.append(engine.generate(torch.tensor([[7, 3, 9, 1]]), 30, nodes=12, depth=4, generator=generator).tolist())
    assert runs[0] == runs[1]


def test_the_choice_by_device_and_dtype(monkeypatch):
    monkeypatch.setattr(attention, "find_spec", lambda name: True)
    choose = attention.choose.__wrapped__
    assert choose("cpu", torch.bfloat16) is attention.by_torch
    assert choose("cuda", torch.bfloat16) is attention.by_flash
    assert choose("cuda", torch.float32) is attention.by_flex
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    assert choose("cuda", torch.bfloat16) is attention.by_flex


@pytest.mark.parametrize("size", [attention.SMALLEST_HEAD // 2, attention.SMALLEST_HEAD])
def test_small_heads_are_not_given_to_flex_attention_on_a_gpu(monkeypatch, size):
    """Its kernels refuse them. Without a GPU: tensors that say they are on one."""
    asked = []

    def by_flex(*inputs):
        asked.append(inputs)
        return attention.by_torch(*inputs)

    class OnCuda(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(attention, "by_flex", by_flex)
    monkeypatch.setattr(attention, "choose", lambda device, dtype: by_flex)
    query = torch.randn(1, 4, 3, size).as_subclass(OnCuda)
    keys, values = (torch.randn(1, 2, 8, size) for _ in range(2))
    attention.split_prefix(None, query, keys, values, torch.zeros(1, 1, 3, 3), prefix_lengths=torch.tensor([4]))
    assert len(asked) == (size >= attention.SMALLEST_HEAD)


def test_what_flex_attention_is_compiled_with_warns_of_nothing():
    """A DeprecationWarning is an error here, and torch.compile imports what gives one."""
    attention._flex.__wrapped__(compiled=True)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention='eager'.*sdpa, grouped, split_prefix"):
        EagleModel.from_pretrained("nowhere", attention="eager")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("prefix", [attention.by_flex, attention.by_flash])
def test_the_kernels_of_a_gpu_equal_plain_torch(prefix):
    if prefix is attention.by_flash:
        pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    lengths = torch.tensor([300, 1, 512], device="cuda")
    query = torch.randn(3, 8, 60, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(3, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = prefix(query, keys, values, lengths, 0.125)
    expected = attention.by_torch(query.float(), keys.float(), values.float(), lengths, 0.125)
    assert torch.allclose(found.output.float(), expected.output, atol=0.03)
    assert torch.allclose(found.lse, expected.lse, atol=0.03)
