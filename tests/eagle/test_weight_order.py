"""Weights laid out for decoding: same values, same shapes, same tokens; only the strides differ."""
import pytest
import torch
from torch import nn

from eagle import weight_order
from eagle.weight_order import column_major, order_for_decoding


class Tied(nn.Module):
    """A linear layer that shares its weight with the embedding, and one that does not."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(11, 6, dtype=dtype)
        self.inner = nn.Linear(6, 6, bias=True, dtype=dtype)
        self.head = nn.Linear(6, 11, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.inner(self.embed(tokens)))


def test_column_major_has_a_contiguous_transpose():
    weight = torch.randn(5, 3)
    ordered = column_major(weight)
    assert torch.equal(ordered, weight) and ordered.t().is_contiguous() and not ordered.is_contiguous()


def test_values_stay_and_the_embedding_keeps_its_rows():
    torch.manual_seed(0)
    model, tokens = Tied(), torch.arange(11)
    before, values = model(tokens), {name: w.clone() for name, w in model.state_dict().items()}
    order_for_decoding(model)
    assert torch.allclose(model(tokens), before, atol=1e-6)
    assert all(torch.equal(w, values[name]) for name, w in model.state_dict().items())
    assert model.embed.weight.is_contiguous()
    assert model.head.weight.t().is_contiguous() and model.inner.weight.t().is_contiguous()


def test_a_large_shared_table_is_not_copied(monkeypatch):
    monkeypatch.setattr(weight_order, "LARGEST_COPY", 0)
    model = Tied()
    order_for_decoding(model)
    assert model.head.weight is model.embed.weight and model.embed.weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_alone(dtype):
    model = Tied(dtype)
    order_for_decoding(model)
    assert model.inner.weight.is_contiguous() and model.head.weight is model.embed.weight
