"""Products with a packed weight are the ordinary ones, up to rounding."""
import pytest
import torch
from torch.nn.functional import linear

from eagle import packed_linear
from eagle.packed_linear import PackedLinear, can_pack


@pytest.mark.parametrize("shape", [(1, 256), (1, 1, 256), (1, 3, 256), (2, 5, 256), (30, 256), (31, 256), (400, 256)])
def test_the_product_is_the_ordinary_one(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1500, 256, generator=generator)
    x = torch.randn(shape, generator=generator)
    layer = PackedLinear(weight.t().contiguous().t())
    with torch.inference_mode():
        assert torch.allclose(layer(x), linear(x, weight), atol=2e-4)


def test_small_weights_and_other_dtypes_stay_as_they_are(monkeypatch):
    assert not can_pack(torch.zeros(10, 10))
    assert not can_pack(torch.zeros(1500, 256, dtype=torch.bfloat16))
    assert not can_pack(torch.zeros(1500, 256, device="meta"))
    monkeypatch.setattr(packed_linear, "SMALLEST", 1)
    assert PackedLinear(torch.zeros(10, 10)).packed is not None
