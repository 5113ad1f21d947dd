"""The training-time test against its definition, and against drafting as a decoder does it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from eagle.nn.head import Eagle3Head, HeadConfig
from eagle.train.fusion import has_compiler
from eagle.train.objective.unroll import attend_from_origins, unroll

STEPS, LENGTH, VOCABULARY, WIDTH = 4, 9, 30, 32


def tiny_head(**changes) -> Eagle3Head:
    torch.manual_seed(0)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "draft_vocab_size": VOCABULARY,
        "taps": (2, 3, 5),
        "target_hidden_size": WIDTH,
    }
    head = Eagle3Head(HeadConfig(**{**shape, **changes}))
    head.bind_embeddings(nn.Embedding(VOCABULARY, WIDTH))
    return head


def visible(step: int, origins: list[int], length: int) -> torch.Tensor:
    """0/1 rows from the definition: query of each origin over [step-0 keys | keys of step 1 | ... | of this step]."""
    rows = []
    for number, origin in enumerate(origins):
        row = [int(position <= origin) for position in range(length)]
        for _ in range(step):
            row += [int(other == number) for other in range(len(origins))]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.bool)


def test_the_drawing_in_the_docstring():
    expected = """
    1 0 0 0  1 0 0 0  1 0 0 0
    1 1 0 0  0 1 0 0  0 1 0 0
    1 1 1 0  0 0 1 0  0 0 1 0
    1 1 1 1  0 0 0 1  0 0 0 1"""
    rows = [[int(x) for x in line.split()] for line in expected.strip().splitlines()]
    assert visible(2, [0, 1, 2, 3], 4).int().tolist() == rows


@pytest.mark.parametrize("origins", [list(range(LENGTH)), [2, 3, 6]])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_attention_equals_the_masked_definition(origins, step):
    torch.manual_seed(step)
    heads, groups, size, m = 4, 2, 8, len(origins)
    q = torch.randn(2, heads, m, size, dtype=torch.float64)
    widths = [LENGTH] + [m] * step
    keys = [torch.randn(2, groups, width, size, dtype=torch.float64) for width in widths]
    values = [torch.randn(2, groups, width, size, dtype=torch.float64) for width in widths]
    found = attend_from_origins(q, keys, values, torch.tensor(origins).expand(2, m))
    mask, key, value = visible(step, origins, LENGTH), torch.cat(keys, 2), torch.cat(values, 2)
    expected = scaled_dot_product_attention(q, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # the softmax is in float32


def draft_like_a_decoder(head: Eagle3Head, features, tokens, origin: int, steps: int) -> list[torch.Tensor]:
    """Read real features up to `origin` one by one into a cache, then draft with the tokens that truly follow."""
    config = head.config
    cache = [torch.empty(1, config.num_key_value_heads, 0, config.head_dim) for _ in range(2)]

    def attend(q, k, v, _layer):
        cache[0], cache[1] = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        return scaled_dot_product_attention(q, cache[0], cache[1], enable_gqa=True)

    def run(hidden, position):
        return head(hidden, tokens[:, position + 1, None], torch.tensor([[position]]), attend)

    for position in range(origin + 1):
        hidden = run(head.fuse(features[:, position, None]), position)
    states = [hidden]
    for step in range(1, steps):
        states.append(run(states[-1], origin + step))
    return states


@pytest.mark.parametrize("variant", [{}, {"norm_output": True, "fc_norm": True}, {"norm_before_residual": True}])
def test_unrolled_training_equals_decoding(variant):
    head = tiny_head(**variant)
    features = torch.randn(1, LENGTH, 3 * WIDTH)
    tokens = torch.randint(VOCABULARY, (1, LENGTH))
    origins = [1, 3, 4]
    with torch.no_grad():
        trained = list(unroll(head, features, tokens, torch.tensor([origins]), STEPS))
        for column, origin in enumerate(origins):
            for step, hidden in enumerate(draft_like_a_decoder(head, features, tokens, origin, STEPS)):
                expected = head.logits(hidden)[0, 0]
                torch.testing.assert_close(head.logits(trained[step])[0, column], expected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_reach_the_rows_before_it():
    head = tiny_head()
    features, tokens = torch.randn(1, LENGTH, 3 * WIDTH), torch.randint(VOCABULARY, (1, LENGTH))
    origins = torch.tensor([[0, 2, 3]])
    short = list(unroll(head, features[:, :7], tokens[:, :7], origins, 3))
    long = list(unroll(head, features, tokens, origins, 3))
    for a, b in zip(short, long, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        head = tiny_head()
        torch.manual_seed(1)
        features, tokens = torch.randn(2, LENGTH, 3 * WIDTH), torch.randint(VOCABULARY, (2, LENGTH))
        origins = torch.tensor([[1, 2, 3], [0, 4, 5]])
        sum(h.square().sum() for h in unroll(head, features, tokens, origins, STEPS, checkpointing)).backward()
        gradients.append([w.grad for name, w in head.named_parameters() if not name.startswith(("lm_head", "norm"))])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_changes_nothing():
    head = tiny_head()
    compiled, gradients = torch.compile(head.forward, dynamic=True), []
    for length in (LENGTH, LENGTH + 3):  # other shapes, and other lists of keys
        torch.manual_seed(length)
        features, tokens = torch.randn(2, length, 3 * WIDTH), torch.randint(VOCABULARY, (2, length))
        origins = torch.tensor([[1, 2, 3], [0, 4, 5]])
        for run in (None, compiled):
            states = unroll(head, features, tokens, origins, 2, compiled=run)
            loss = sum(h.square().sum() for h in states)
            gradients.append(torch.autograd.grad(loss, list(head.midlayer.parameters())))
    for plain, again in zip(gradients[::2], gradients[1::2], strict=True):
        torch.testing.assert_close(plain, again, atol=1e-4, rtol=1e-4)
