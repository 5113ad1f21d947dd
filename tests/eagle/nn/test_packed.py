"""Products with a packed weight are the ordinary ones, up to rounding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle.nn import native, packed
from eagle.nn.packed import Product, can_pack, pack_layers
from eagle.nn.precision import has_bf16


@pytest.fixture(autouse=True, params=["native", "packed"])
def by(request, monkeypatch):
    """Native code reads the weights where they lie; where there is none, copies are packed."""
    if request.param == "packed":
        monkeypatch.setattr(native, "unavailable", lambda: "asked for packed copies")


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("shape", [(1, 256), (1, 1, 256), (1, 3, 256), (2, 5, 256), (30, 256), (31, 256), (400, 256)])
def test_the_product_is_the_ordinary_one(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1500, 256, generator=generator)
    x = torch.randn(shape, generator=generator)
    layer = Product(layer_of(weight.t().contiguous().t()))
    with torch.inference_mode():
        assert torch.allclose(layer(x), linear(x, weight), atol=2e-4)


def test_a_changed_weight_is_packed_again():
    layer, x = layer_of(torch.ones(1500, 256)), torch.ones(3, 256)
    product = Product(layer)
    with torch.no_grad():
        assert product(x)[0, 0] == 256
        layer.weight.mul_(2)
        assert product(x)[0, 0] == 512
        layer.weight = nn.Parameter(torch.zeros(1500, 256))
        assert product(x)[0, 0] == 0


def test_small_weights_and_other_dtypes_stay_as_they_are(monkeypatch):
    assert not can_pack(torch.zeros(10, 10))
    assert not can_pack(torch.zeros(1500, 256, dtype=torch.float64))
    assert can_pack(torch.zeros(1500, 256, dtype=torch.bfloat16)) == has_bf16(torch.device("cpu"))
    assert not can_pack(torch.zeros(1500, 256, device="meta"))
    monkeypatch.setattr(packed, "LARGEST", 1000)
    assert not can_pack(torch.zeros(1500, 256))


@pytest.mark.parametrize("rows", [1, 3, 600])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_they_did(rows, bias, dtype):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(512, 1024, bias=bias), nn.SiLU(), nn.Linear(1024, 512, bias=bias)).to(dtype)
    x = torch.randn(rows, 512, dtype=dtype)
    before, names = layers(x), list(layers.state_dict())
    pack_layers(layers)
    with torch.inference_mode():
        after = layers(x)
    assert torch.allclose(after, before, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
    assert list(layers.state_dict()) == names and type(layers[0]) is nn.Linear


def test_packed_layers_keep_their_gradient():
    layers = nn.Sequential(nn.Linear(512, 1024)).bfloat16()
    pack_layers(layers)
    layers(torch.ones(3, 512, dtype=torch.bfloat16)).sum().backward()
    assert torch.equal(layers[0].weight.grad, torch.full((1024, 512), 3.0, dtype=torch.bfloat16))


def test_float32_layers_are_left_alone():
    layers = nn.Sequential(nn.Linear(512, 1024))
    pack_layers(layers)
    assert "forward" not in vars(layers[0])


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU does not multiply bfloat16 itself")
def test_a_second_call_and_foreign_forwards_change_nothing():
    layers = nn.Sequential(nn.Linear(512, 1024), nn.Linear(1024, 512)).bfloat16()
    layers[1].forward = foreign = layers[1].forward
    pack_layers(layers)
    ours = layers[0].forward
    pack_layers(layers)
    assert isinstance(ours, Product) and layers[0].forward is ours and layers[1].forward is foreign


def test_a_model_that_does_not_fit_twice_is_left_alone(monkeypatch):
    monkeypatch.setattr(packed, "free_bytes", lambda _device: 2**20)
    layers = nn.Sequential(nn.Linear(512, 1024)).bfloat16()
    pack_layers(layers)
    assert "forward" not in vars(layers[0])
