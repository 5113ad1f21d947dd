"""Products of layers with the same input are the ordinary ones, up to rounding, however they are made."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle.nn import packed
from eagle.nn.native import calls
from eagle.nn.packed import Product, can_pack
from eagle.nn.precision import has_bf16


@pytest.fixture(params=["native", "torch"])
def how(request, monkeypatch):
    """With the native code, where there is some, and without."""
    if request.param == "torch":
        monkeypatch.setattr(calls, "usable", lambda *_tensors: False)
    return request.param


def layer_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


@pytest.mark.parametrize("shape", [(1, 256), (1, 1, 256), (1, 3, 256), (2, 5, 256), (30, 256), (31, 256), (400, 256)])
@pytest.mark.parametrize("column_major", [False, True])
def test_the_product_is_the_ordinary_one(shape, column_major, how):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(1500, 256, generator=generator), torch.randn(shape, generator=generator)
    weight = weight.t().contiguous().t() if column_major else weight
    assert torch.allclose(Product(layer_of(weight))(x), linear(x, weight), atol=2e-4)


@pytest.mark.parametrize("rows", [1, 3, 600])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_with_one_input_lie_side_by_side(rows, bias, join, dtype, how):
    torch.manual_seed(0)
    layers = [nn.Linear(512, out, bias=bias).to(dtype).requires_grad_(False) for out in (1024, 256, 256)]
    x = torch.randn(rows, 512, dtype=dtype)
    expected = torch.cat([layer(x) for layer in layers], -1)
    found = Product(*layers, join=join)(x)
    assert torch.allclose(found, expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("join", [True, False])
def test_a_changed_weight_is_seen(join, how):
    """Written to, replaced, or written through `.data`, which torch does not count; then `is_current` says so."""
    layers, x = [layer_of(torch.ones(1500, 256)) for _ in range(2)], torch.ones(3, 256)

    def current(product: Product) -> Product:
        return product if product.is_current() else Product(*layers, join=join)

    product = Product(*layers, join=join)
    for value, change in {
        256: lambda: None,
        512: lambda: layers[0].weight.mul_(2),
        768: lambda: layers[0].weight.data.fill_(3),
        1024: lambda: setattr(layers[0].weight, "data", torch.full((1500, 256), 4.0)),
        0: lambda: setattr(layers[0], "weight", nn.Parameter(torch.zeros(1500, 256), requires_grad=False)),
    }.items():
        change()
        product = current(product)
        assert product(x)[0, 0] == value and product(x)[0, -1] == 256


def test_joined_weights_are_views_that_keep_their_names_and_content():
    layers = nn.ModuleDict({"k": nn.Linear(8, 4), "v": nn.Linear(8, 4)}).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    product = Product(*layers.values(), join=True)
    assert layers["v"].weight.data_ptr() == layers["k"].weight.data_ptr() + layers["k"].weight.nbytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in layers.state_dict().items())
    assert product.is_current() and list(layers.state_dict()) == list(before)
    layers.double()
    assert not product.is_current()


def test_gradients_go_the_ordinary_way(how):
    layer = nn.Linear(512, 1024).bfloat16()
    Product(layer)(torch.ones(3, 512, dtype=torch.bfloat16)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((1024, 512), 3.0, dtype=torch.bfloat16))


def test_small_weights_and_other_dtypes_are_not_packed(monkeypatch):
    assert not can_pack(torch.zeros(10, 10))
    assert not can_pack(torch.zeros(1500, 256, dtype=torch.float64))
    assert can_pack(torch.zeros(1500, 256, dtype=torch.bfloat16)) == has_bf16(torch.device("cpu"))
    assert not can_pack(torch.zeros(1500, 256, device="meta"))
    monkeypatch.setattr(packed, "LARGEST", 1000)
    assert not can_pack(torch.zeros(1500, 256))


def test_no_copies_where_they_do_not_fit_or_are_not_wanted(monkeypatch):
    monkeypatch.setattr(calls, "usable", lambda *_tensors: False)
    monkeypatch.setattr(packed, "packed", lambda _weight: pytest.fail("a copy was made"))
    layer, x = layer_of(torch.ones(1500, 256)), torch.ones(3, 256)
    assert Product(layer, copies=False)(x)[0, 0] == 256
    monkeypatch.setattr(packed, "free_bytes", lambda _device: 2**20)
    assert not packed.copies_fit([layer.weight])
