"""The form a head decodes with equals the head, for every published variant and dtype."""

import pytest
import torch
from torch import nn

from eagle.drafters import Eagle3Drafter
from eagle.nn import native
from eagle.nn.fused_head import FusedHead
from eagle.nn.head import Eagle3Head, HeadConfig
from eagle.nn.kv_cache import CacheShape, CacheWindow, KVBuffer
from tests.eagle.nn.test_head import BASE, VARIANTS, D, F, N, V, causal

# The norms and rotary angles of `transformers` are float32 whatever the weights are.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-5, torch.bfloat16: 6e-2}
MORE = {
    "same vocabulary": {"draft_vocab_size": V},
    "moving rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
}


def random_head(changes: dict, dtype: torch.dtype = torch.float32) -> Eagle3Head:
    torch.manual_seed(0)
    head = Eagle3Head(HeadConfig(**{**BASE, **changes})).to(dtype)
    for name, weight in head.named_parameters():
        weight.data = torch.randn_like(weight) * 0.3 + (1.0 if "norm" in name else 0.0)
    head.bind_embeddings(nn.Embedding(V, D).to(dtype))
    return head.requires_grad_(False)


def run(fused: FusedHead, features, tokens, positions):
    """The head's forward over a causal sequence: hidden states and logits."""
    residual, q, kv = fused.before_attention(fused.head.fuse(features), tokens, positions)
    attended = causal(q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
    hidden = fused.after_attention(residual, attended)
    return hidden, fused.logits(hidden)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("changes", [*VARIANTS.values(), *MORE.values()], ids=[*VARIANTS, *MORE])
def test_equals_the_head(changes, dtype):
    head = random_head(changes, dtype)
    features, tokens = torch.randn(2, N, 3 * F, dtype=dtype), torch.randint(V, (2, N))
    positions = torch.arange(N) + torch.tensor([[3], [40]])
    expected = head(head.fuse(features), tokens, positions, causal)
    fused = FusedHead(head)
    fused.reserve(64)
    hidden, logits = run(fused, features, tokens, positions)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(hidden, expected, **close)
    torch.testing.assert_close(logits, head.logits(expected), **close)


@torch.no_grad()
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("changes", [*VARIANTS.values(), *MORE.values()], ids=[*VARIANTS, *MORE])
def test_the_native_layer_equals_the_head(changes, last):
    head = random_head(changes)
    outputs, buffers = [], []
    features, tokens = torch.randn(2, N, 3 * F), torch.randint(V, (2, N))
    mask = torch.zeros(2, N, 3 + N).masked_fill_(torch.rand(2, N, 3 + N) < 0.3, -torch.inf)
    mask[..., 2] = 0
    config = head.config
    for which in ("native", "torch"):
        fused = FusedHead(head)
        if fused.native is None:
            pytest.skip(f"no native code: {native.unavailable()}")
        if which == "torch":
            fused.native = None
        fused.reserve(64)
        device = torch.device("cpu")
        buffer = KVBuffer(
            CacheShape(2, config.num_key_value_heads, config.head_dim, 4, 64, (device,), head.fc.weight.dtype)
        )
        buffer.stores[0].copy_(torch.randn(buffer.stores[0].shape, generator=torch.Generator().manual_seed(1)))
        window = CacheWindow(buffer, first=1, stop=4 + N, start=2)
        positions = torch.arange(N) + torch.tensor([[3], [40]])
        wanted = torch.tensor([[N - 2], [1]]) if last else None
        outputs.append(fused(fused.fuse(features), tokens, positions, window, mask, wanted))
        buffers.append(buffer.stores[0])
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(*buffers, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["midlayer.self_attn.k_proj.weight", "norm.weight", "midlayer.input_layernorm.weight"])
def test_a_weight_written_to_is_noticed(name):
    """Training evaluates a copy of its head whose weights are loaded anew before every trial."""
    drafter = Eagle3Drafter(random_head({}))
    drafter.reserve(1, 4, 16, 4)
    before = drafter.fused
    drafter.reserve(1, 4, 16, 4)
    assert drafter.fused is before
    drafter.head.load_state_dict({**drafter.head.state_dict(), name: drafter.head.state_dict()[name] * 2})
    drafter.reserve(1, 4, 16, 4)
    assert drafter.fused is not before


def test_the_head_stays_what_it_was():
    head = random_head({})
    before = {name: weight.clone() for name, weight in head.state_dict().items()}
    FusedHead(head).reserve(8)
    assert all(torch.equal(weight, before[name]) for name, weight in head.state_dict().items())
