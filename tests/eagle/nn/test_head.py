"""The head and its published variants against a reference written with loops over plain numbers."""

import math

import pytest
import torch
from torch import nn

from eagle.nn.head import Eagle3Head, HeadConfig

D, F, HEADS, GROUPS, E, INNER, V, VD, N = 8, 6, 4, 2, 4, 10, 12, 7, 5
BASE = {
    "hidden_size": D,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": E,
    "vocab_size": V,
    "draft_vocab_size": VD,
    "taps": (1, 2, 3),
    "target_hidden_size": F,
    "rms_norm_eps": 1e-3,
    "own_embeddings": True,
}
VARIANTS = {
    "published": {},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "eagle 3.1": {"fc_norm": True, "norm_output": True},
    "target's embeddings": {"own_embeddings": False},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "rope scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "wide heads": {"head_dim": 6},
    "one head group": {"num_key_value_heads": 1},
}


# --- the reference: lists of floats --------------------------------------------------------------------------------


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix, x):
    return [dot(row, x) for row in matrix]


def plus(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def rms_norm(x, weight, eps):
    scale = 1 / math.sqrt(sum(value * value for value in x) / len(x) + eps)
    return [value * scale * w for value, w in zip(x, weight, strict=True)]


def rotate(x, position, rope):
    """Half-split rotary embedding of one head."""
    half, out = len(x) // 2, list(x)
    for i in range(half):
        angle = position / rope["rope_theta"] ** (2 * i / len(x)) / rope.get("factor", 1.0)
        cos, sin = math.cos(angle), math.sin(angle)
        out[i], out[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin
    return out


def attention(w, config, inputs, rope):
    """Causal grouped-query attention over a list of inputs, one position after the other."""
    e, ratio = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    keys, values, outputs = [], [], []
    for position, x in enumerate(inputs):
        q, k, v = (times(w[f"midlayer.self_attn.{name}_proj.weight"], x) for name in "qkv")
        keys.append([rotate(k[g * e : (g + 1) * e], position, rope) for g in range(config.num_key_value_heads)])
        values.append([v[g * e : (g + 1) * e] for g in range(config.num_key_value_heads)])
        mixed = []
        for h in range(config.num_attention_heads):
            query = rotate(q[h * e : (h + 1) * e], position, rope)
            scores = [math.exp(dot(query, key[h // ratio]) / math.sqrt(e)) for key in keys]
            seen = [value[h // ratio] for value in values]
            mixed += [dot(scores, [value[column] for value in seen]) / sum(scores) for column in range(e)]
        outputs.append(times(w["midlayer.self_attn.o_proj.weight"], mixed))
    return outputs


def fuse(w, config, features):
    eps = config.rms_norm_eps
    if config.norm_before_fc:
        features = rms_norm(features, w["input_norm.weight"], eps)
    if config.fc_norm:
        parts = [features[i * F : (i + 1) * F] for i in range(3)]
        features = [x for i, part in enumerate(parts) for x in rms_norm(part, w[f"fc_norm.{i}.weight"], eps)]
    return times(w["fc.weight"], features)


def reference(w, config, features, tokens, table):
    """features N x 3F, tokens N -> (hidden states handed on, logits)."""
    eps, rope = config.rms_norm_eps, config.rope_parameters or {"rope_theta": 1e4}
    fused = [fuse(w, config, row) for row in features]
    normed = [rms_norm(g, w["midlayer.hidden_norm.weight"], eps) for g in fused]
    embedded = [rms_norm(table[t], w["midlayer.input_layernorm.weight"], eps) for t in tokens]
    attended = attention(w, config, [e + n for e, n in zip(embedded, normed, strict=True)], rope)
    handed, logits = [], []
    for g, n, a in zip(fused, normed, attended, strict=True):
        h = plus(n if config.norm_before_residual else g, a)
        x = rms_norm(h, w["midlayer.post_attention_layernorm.weight"], eps)
        gate, up = times(w["midlayer.mlp.gate_proj.weight"], x), times(w["midlayer.mlp.up_proj.weight"], x)
        inner = [y / (1 + math.exp(-y)) * z for y, z in zip(gate, up, strict=True)]
        h = plus(h, times(w["midlayer.mlp.down_proj.weight"], inner))
        last = rms_norm(h, w["norm.weight"], eps)
        handed.append(last if config.norm_output else h)
        logits.append(times(w["lm_head.weight"], last))
    return handed, logits


# --- the comparison ------------------------------------------------------------------------------------------------


def causal(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variant_equals_its_reference(changes):
    torch.manual_seed(0)
    config = HeadConfig(**{**BASE, **changes})
    head = Eagle3Head(config).double()
    for name, weight in head.named_parameters():
        weight.data = torch.randn_like(weight) * 0.5 + (1.0 if "norm" in name else 0.0)
    table = nn.Embedding(V, D).double()
    head.bind_embeddings(table)
    features, tokens = torch.randn(1, N, 3 * F, dtype=torch.float64), torch.randint(V, (1, N))
    hidden = head(head.fuse(features), tokens, torch.arange(N)[None], causal)

    used = head.embed_tokens if config.own_embeddings else table
    weights = {name: tensor.tolist() for name, tensor in head.state_dict().items()}
    expected, logits = reference(weights, config, features[0].tolist(), tokens[0].tolist(), used.weight.tolist())
    # rotary angles are float32 in the head as in every engine
    torch.testing.assert_close(hidden[0], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.logits(hidden)[0], torch.tensor(logits, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_variants_differ():
    """Each flag changes the result, so a flag that were ignored would be seen above."""
    features, tokens, results = torch.randn(1, N, 3 * F), torch.randint(V, (1, N)), []
    for flag in (None, "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"):
        changes = {flag: True} if flag else {}
        torch.manual_seed(0)
        config = HeadConfig(**{**BASE, **changes})
        head = Eagle3Head(config)
        head.load_state_dict(
            {
                n: torch.sin(torch.arange(float(t.numel()))).view(t.shape) if t.is_floating_point() else t
                for n, t in head.state_dict().items()
            }
        )
        results.append(head(head.fuse(features), tokens, torch.arange(N)[None], causal))
    for i, a in enumerate(results):
        assert all(not torch.allclose(a, b) for b in results[:i])


def test_rotary_frequencies_stay_float32():
    head = Eagle3Head(HeadConfig(**BASE))
    before = head.rotary.inv_freq.clone()
    head.to(torch.bfloat16)
    assert head.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(head.rotary.inv_freq, before)
    assert head.fc.weight.dtype == torch.bfloat16


def test_support():
    head = Eagle3Head(HeadConfig(**BASE))
    kept = torch.tensor([0, 1, 4, 5, 6, 9, 11])
    head.d2t.copy_(kept - torch.arange(VD))
    assert head.support().tolist() == kept.tolist()
    assert Eagle3Head(HeadConfig(**{**BASE, "draft_vocab_size": V})).support() is None
