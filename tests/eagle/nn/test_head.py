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
    "rope llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "rope yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "max_position_embeddings": 256,
    },
    "wide heads": {"head_dim": 6},
    "one head group": {"num_key_value_heads": 1},
    "five taps": {"taps": (1, 2, 3, 5, 7)},
    "five taps, fc_norm": {"taps": (1, 2, 3, 5, 7), "fc_norm": True},
    "one tap": {"taps": (4,)},
    "qk_norm": {"qk_norm": True},
    "qkv_bias": {"qkv_bias": True},
    "all biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "window": {"sliding_windows": (2,)},
    "two layers": {"num_hidden_layers": 2, "norm_before_residual": True},
    "three layers, one window": {"num_hidden_layers": 3, "sliding_windows": (None, 3, None), "qk_norm": True},
    "two wide layers": {"num_hidden_layers": 2, "embeds_in_every_layer": True, "norm_output": True},
    "target's output": {"own_lm_head": False, "draft_vocab_size": V},
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


def frequencies(rope, size):
    """Rotary frequencies of a head, and what queries and keys are scaled by."""
    plain = [rope["rope_theta"] ** (-2 * i / size) for i in range(size // 2)]
    kind, factor = rope.get("rope_type", "default"), rope.get("factor", 1.0)
    if kind in ("default", "linear"):
        return [f / factor for f in plain], 1.0
    original = rope["original_max_position_embeddings"]
    if kind == "llama3":  # wavelengths shorter than original / high keep theirs, longer than original / low are scaled
        low, high, out = rope["low_freq_factor"], rope["high_freq_factor"], []
        for f in plain:
            turns = original * f / (2 * math.pi)
            share = min(max((turns - low) / (high - low), 0.0), 1.0)
            out.append((1 - share) * f / factor + share * f)
        return out, 1.0

    def dimension(turns):  # where a frequency makes so many turns within the original length
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), size - 1)
    ramp = [min(max((i - low) / max(high - low, 0.001), 0.0), 1.0) for i in range(size // 2)]
    return [f / factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)], 0.1 * math.log(factor) + 1.0


def rotate(x, position, rope):
    """Half-split rotary embedding of one head."""
    half, out = len(x) // 2, list(x)
    angles, scale = frequencies(rope, len(x))
    for i in range(half):
        cos, sin = scale * math.cos(position * angles[i]), scale * math.sin(position * angles[i])
        out[i], out[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin
    return out


def affine(w, name, x):
    """Product with `name`.weight, plus `name`.bias where there is one."""
    out = times(w[f"{name}.weight"], x)
    return plus(out, w[f"{name}.bias"]) if f"{name}.bias" in w else out


def heads_of(w, name, x, size):
    """The projection of one position, cut into heads, normed where the head does that."""
    out = affine(w, f"{name}_proj", x)
    parts = [out[start : start + size] for start in range(0, len(out), size)]
    norm = f"{name}_norm.weight"
    return [rms_norm(part, w[norm], BASE["rms_norm_eps"]) for part in parts] if norm in w else parts


def attention(w, config, inputs, rope, prefix, window):
    """Causal grouped-query attention over a list of inputs, one position after the other."""
    e, ratio = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    keys, values, outputs = [], [], []
    for position, x in enumerate(inputs):
        q, k, v = (heads_of(w, f"{prefix}.self_attn.{name}", x, e) for name in "qkv")
        keys.append([rotate(key, position, rope) for key in k])
        values.append(v)
        first = 0 if window is None else max(0, position - window + 1)
        mixed = []
        for h in range(config.num_attention_heads):
            query = rotate(q[h], position, rope)
            scores = [math.exp(dot(query, key[h // ratio]) / math.sqrt(e)) for key in keys[first:]]
            seen = [value[h // ratio] for value in values[first:]]
            mixed += [dot(scores, [value[column] for value in seen]) / sum(scores) for column in range(e)]
        outputs.append(affine(w, f"{prefix}.self_attn.o_proj", mixed))
    return outputs


def fuse(w, config, features):
    eps = config.rms_norm_eps
    if config.norm_before_fc:
        features = rms_norm(features, w["input_norm.weight"], eps)
    if config.fc_norm:
        parts = [features[i * F : (i + 1) * F] for i in range(len(config.taps))]
        features = [x for i, part in enumerate(parts) for x in rms_norm(part, w[f"fc_norm.{i}.weight"], eps)]
    return times(w["fc.weight"], features)


def mlp(w, prefix, x):
    gate, up = affine(w, f"{prefix}.mlp.gate_proj", x), affine(w, f"{prefix}.mlp.up_proj", x)
    inner = [y / (1 + math.exp(-y)) * z for y, z in zip(gate, up, strict=True)]
    return affine(w, f"{prefix}.mlp.down_proj", inner)


def decoder_layer(w, config, layer, hidden, embedded, rope):
    """Hidden states of all positions through one layer."""
    eps, prefix = config.rms_norm_eps, f"layers.{layer}" if layer else "midlayer"
    if layer == 0 or config.embeds_in_every_layer:
        normed = [rms_norm(h, w[f"{prefix}.hidden_norm.weight"], eps) for h in hidden]
        inputs = [
            rms_norm(e, w[f"{prefix}.input_layernorm.weight"], eps) + n for e, n in zip(embedded, normed, strict=True)
        ]
        residual = normed if config.norm_before_residual and layer == 0 else hidden
    else:
        inputs, residual = [rms_norm(h, w[f"{prefix}.input_layernorm.weight"], eps) for h in hidden], hidden
    window = config.sliding_windows[layer] if config.sliding_windows else None
    out = []
    for r, a in zip(residual, attention(w, config, inputs, rope, prefix, window), strict=True):
        h = plus(r, a)
        out.append(plus(h, mlp(w, prefix, rms_norm(h, w[f"{prefix}.post_attention_layernorm.weight"], eps))))
    return out


def reference(w, config, features, tokens, table):
    """features N x 3F, tokens N -> (hidden states handed on, logits)."""
    eps, rope = config.rms_norm_eps, config.rope_parameters or {"rope_theta": 1e4}
    hidden, embedded = [fuse(w, config, row) for row in features], [table[t] for t in tokens]
    for layer in range(config.num_hidden_layers):
        hidden = decoder_layer(w, config, layer, hidden, embedded, rope)
    last = [rms_norm(h, w["norm.weight"], eps) for h in hidden]
    return last if config.norm_output else hidden, [times(w["lm_head.weight"], h) for h in last]


# --- the comparison ------------------------------------------------------------------------------------------------


def windowed(config):
    """The `attend` of a head that reads a sequence from its beginning."""

    def attend(q, k, v, layer):
        at = torch.arange(q.shape[2])
        window = config.window_of(layer) or q.shape[2]
        seen = (at <= at[:, None]) & (at > at[:, None] - window)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)

    return attend


def random_weights(head):
    for name, weight in head.named_parameters():
        weight.data = torch.randn_like(weight) * 0.5 + (1.0 if "norm" in name else 0.0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variant_equals_its_reference(changes):
    torch.manual_seed(0)
    config = HeadConfig(**{**BASE, **changes})
    head = Eagle3Head(config).double()
    random_weights(head)
    table, output = nn.Embedding(V, D).double(), nn.Linear(D, V, bias=False).double()
    head.bind_embeddings(table)
    head.bind_output(output)
    features = torch.randn(1, N, len(config.taps) * F, dtype=torch.float64)
    tokens = torch.randint(V, (1, N))
    hidden = head(head.fuse(features), tokens, torch.arange(N)[None], windowed(config))

    used = head.embed_tokens if config.own_embeddings else table
    weights = {name: tensor.tolist() for name, tensor in head.state_dict().items()}
    weights.setdefault("lm_head.weight", output.weight.tolist())
    expected, logits = reference(weights, config, features[0].tolist(), tokens[0].tolist(), used.weight.tolist())
    # rotary angles are float32 in the head as in every engine
    torch.testing.assert_close(hidden[0], torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.logits(hidden)[0], torch.tensor(logits, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_a_head_without_an_lm_head_wants_its_target():
    head = Eagle3Head(HeadConfig(**{**BASE, "own_lm_head": False, "draft_vocab_size": V}))
    assert "lm_head.weight" not in head.state_dict()
    with pytest.raises(ValueError, match=r"head\.bind\(target\)"):
        head.logits(torch.zeros(1, D))


def causal(q, k, v, _layer=0):
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


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
