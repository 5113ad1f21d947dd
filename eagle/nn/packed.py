"""Weights on a CPU, packed once for products with few rows.

Such a product spends most of its time rearranging the weight, anew each time. oneDNN takes a weight rearranged
beforehand. One thread, ordinary / packed:

    float32, AVX2, milliseconds          1 row          3 rows         8 rows         16 rows
    49152 x 576       output layer       11.1 / 9.4     37.0 / 14.3    28.7 / 14.9    32.7 / 20.4
    1536 x 576        MLP                0.12 / 0.14    0.26 / 0.13    0.38 / 0.24    0.49 / 0.44

    bfloat16, AMX, milliseconds          1 row          8 rows         32 rows        512 rows
    49152 x 576       output layer       4.4 / 2.7      5.7 / 2.7      7.6 / 4.1
    1536 x 576        MLP                0.12 / 0.05    0.16 / 0.08    0.19 / 0.12    0.76 / 0.70
    192 x 576         keys               0.03 / 0.02    0.03 / 0.02    0.03 / 0.02    0.12 / 0.10

So in float32 one row, and hundreds, go the ordinary way; in bfloat16 every product is packed where the CPU multiplies
that itself. Values differ from those of `torch.nn.functional.linear` by rounding only. The packed weight is a copy, so
`pack_layers` asks for the memory first. What it is worth on a whole step: docs/step.md.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle.nn.memory import free_bytes
from eagle.nn.precision import has_bf16

SMALLEST = {torch.float32: 2**18, torch.bfloat16: 2**16}  # weights; below, the call costs more than packing saves
ROWS = {torch.float32: range(2, 31), torch.bfloat16: range(1, 513)}
LARGEST = 2**30  # bytes of one weight
MEMORY_SHARE = 0.25  # of the free memory, at most, that a model's packed copies may take
HINT = 8  # rows the packing is made for


def packed(weight: Tensor) -> Tensor:
    """W [out, in] -> its packed copy, opaque: for `packed_product` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), HINT)  # noqa: SLF001


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] and a packed W -> x W^T + bias [..., out]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001


class PackedLinear:
    """A linear layer, x [..., in] -> x W^T + b [..., out], with a packed copy of W where that is faster.

    The layer stays the owner of W: when its weight is replaced or written to, the copy is made anew.
    """

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.made_of: tuple[int, int] | None = None
        self.packed: Tensor | None = None  # None: `made_of` is not to be packed

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        few = x.numel() // x.shape[-1] in ROWS.get(weight.dtype, ())
        if not few or x.dtype != weight.dtype or needs_gradient(x, weight):
            return linear(x, weight, bias)
        version = version_of(weight)
        if version != self.made_of:
            self.packed, self.made_of = packed(weight) if can_pack(weight) else None, version
        return linear(x, weight, bias) if self.packed is None else packed_product(x, self.packed, bias)


def version_of(weight: Tensor) -> tuple[int, int]:
    """Changes when a weight is replaced or written to. Inference tensors do not count their writes."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version  # noqa: SLF001


def needs_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether autograd would follow this product; the packed one has no derivative."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def can_pack(weight: Tensor) -> bool:
    """Whether this weight has the right size, on a CPU, in a dtype that it multiplies itself, and this torch has
    oneDNN's packed product.
    """
    if weight.device.type != "cpu" or weight.dtype not in ROWS:
        return False
    if weight.numel() < SMALLEST[weight.dtype] or weight.nbytes > LARGEST:
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return weight.dtype == torch.float32 or has_bf16(weight.device)


def pack_layers(layers: nn.Module) -> None:
    """Let every bfloat16 linear layer inside a stock model go through `PackedLinear`, where the copies fit.

    In float32 a whole step gains nothing by it: 86 ms, packed 89, with 16 nodes of SmolLM2 on an AMX machine.

    Weights, their names and the module's type stay. Layers whose `forward` is someone else's already (accelerate's
    hooks, a second call of this function) are left alone.
    """
    chosen = [
        layer
        for layer in layers.modules()
        if type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and layer.weight.dtype == torch.bfloat16
        and can_pack(layer.weight)
    ]
    if not chosen or sum(layer.weight.nbytes for layer in chosen) > MEMORY_SHARE * free_bytes(chosen[0].weight.device):
        return
    for layer in chosen:
        layer.forward = PackedLinear(layer)  # type: ignore[method-assign, assignment]
