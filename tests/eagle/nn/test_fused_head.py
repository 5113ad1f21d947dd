"""The form a head decodes with equals the head, for every published variant and dtype."""

import pytest
import torch
from torch import nn

from eagle.drafters import Eagle3Drafter
from eagle.nn.fused_head import FusedHead
from eagle.nn.head import Eagle3Head, HeadConfig
from tests.eagle.nn.test_head import BASE, VARIANTS, D, F, N, V, windowed

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
    head.bind_output(nn.Linear(D, V, bias=False).to(dtype))
    return head.requires_grad_(False)


def run(layers: list[FusedHead], features, tokens, positions):
    """The head's forward over a causal sequence: hidden states and logits."""
    hidden = layers[0].head.fuse(features)
    for fused in layers:
        residual, q, kv = fused.before_attention(hidden, tokens, positions)
        attended = windowed(fused.config)(q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4), fused.index)
        hidden = fused.after_attention(residual, attended.transpose(1, 2).flatten(2))
    return hidden, layers[-1].logits(hidden)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("changes", [*VARIANTS.values(), *MORE.values()], ids=[*VARIANTS, *MORE])
def test_equals_the_head(changes, dtype):
    head = random_head(changes, dtype)
    features = torch.randn(2, N, len(head.config.taps) * F, dtype=dtype)
    tokens = torch.randint(V, (2, N))
    positions = torch.arange(N) + torch.tensor([[3], [40]])
    expected = head(head.fuse(features), tokens, positions, windowed(head.config))
    layers = [FusedHead(head, layer) for layer in range(head.config.num_hidden_layers)]
    for fused in layers:
        fused.reserve(64)
    hidden, logits = run(layers, features, tokens, positions)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(hidden, expected, **close)
    torch.testing.assert_close(logits, head.logits(expected), **close)


@pytest.mark.parametrize("name", ["midlayer.self_attn.k_proj.weight", "norm.weight", "midlayer.input_layernorm.weight"])
def test_a_weight_written_to_is_noticed(name):
    """Training evaluates a copy of its head whose weights are loaded anew before every trial."""
    drafter = Eagle3Drafter(random_head({}))
    head, features, tokens = drafter.head, torch.randn(1, N, 3 * F), torch.randint(V, (1, N))
    positions = torch.arange(N)[None]
    run([drafter.fused], features, tokens, positions)
    state = head.state_dict()
    head.load_state_dict({**state, name: state[name] * 2 + 0.1})
    drafter.refresh()
    _, logits = run([drafter.fused], features, tokens, positions)
    hidden = head(head.fuse(features), tokens, positions, windowed(head.config))
    torch.testing.assert_close(logits, head.logits(hidden), atol=2e-5, rtol=2e-5)


def test_the_head_stays_what_it_was():
    head = random_head({})
    before = {name: weight.clone() for name, weight in head.state_dict().items()}
    FusedHead(head).reserve(8)
    assert all(torch.equal(weight, before[name]) for name, weight in head.state_dict().items())
