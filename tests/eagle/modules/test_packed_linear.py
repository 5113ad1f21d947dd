"""Products with a packed weight are the ordinary ones, up to rounding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle.modules import packed_linear
from eagle.modules.packed_linear import PackedLinear, can_pack


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("shape", [(1, 256), (1, 1, 256), (1, 3, 256), (2, 5, 256), (30, 256), (31, 256), (400, 256)])
def test_the_product_is_the_ordinary_one(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1500, 256, generator=generator)
    x = torch.randn(shape, generator=generator)
    layer = PackedLinear(layer_of(weight.t().contiguous().t()))
    with torch.inference_mode():
        assert torch.allclose(layer(x), linear(x, weight), atol=2e-4)


def test_a_changed_weight_is_packed_again():
    layer, x = layer_of(torch.ones(1500, 256)), torch.ones(3, 256)
    product = PackedLinear(layer)
    with torch.no_grad():
        assert product(x)[0, 0] == 256
        layer.weight.mul_(2)
        assert product(x)[0, 0] == 512
        layer.weight = nn.Parameter(torch.zeros(1500, 256))
        assert product(x)[0, 0] == 0


def test_small_weights_and_other_dtypes_stay_as_they_are(monkeypatch):
    assert not can_pack(torch.zeros(10, 10))
    assert not can_pack(torch.zeros(1500, 256, dtype=torch.bfloat16))
    assert not can_pack(torch.zeros(1500, 256, device="meta"))
    monkeypatch.setattr(packed_linear, "LARGEST", 1000)
    assert not can_pack(torch.zeros(1500, 256))
