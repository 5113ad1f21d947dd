"""A large float32 weight on a CPU, packed once for products with few rows.

The product of 2 to 30 rows with a weight [out, in] spends most of its time rearranging the weight, anew each time.
oneDNN takes a weight rearranged beforehand. On two AVX2 cores, one thread, milliseconds, ordinary / packed:

    weight            1 row          3 rows         8 rows         16 rows
    49152 x 576       11.1 / 9.4     37.0 / 14.3    28.7 / 14.9    32.7 / 20.4       output layer of SmolLM2-135M
    151936 x 896      42 / 44        140 / 50       139 / 70       171 / 97          output layer of Qwen2.5-0.5B
    1536 x 576        0.12 / 0.14    0.26 / 0.13    0.38 / 0.24    0.49 / 0.44       a draft head's MLP

One row, and hundreds, go the ordinary way. Values differ from those of `torch.nn.functional.linear` by rounding only.
What it is worth in tokens per second on a real pair: docs/step.md.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

SMALLEST = 2**18  # weights; for smaller matrices the call costs more than the packing saves
LARGEST = 2**28  # bytes; the packed weight is a copy
ROWS = range(2, 31)
HINT = 8  # rows the packing is made for


def packed(weight: Tensor) -> Tensor:
    """W [out, in] -> its packed copy, opaque: for `packed_product` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), HINT)  # noqa: SLF001


def packed_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] and a packed W -> x W^T [..., out]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001


class PackedLinear:
    """A linear layer without bias, x [..., in] -> x W^T [..., out], with a packed copy of W where that is faster.

    The layer stays the owner of W: when its weight is replaced or written to, the copy is made anew.
    """

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.made_of: tuple[int, int] | None = None
        self.packed: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows not in ROWS or not can_pack(self.layer.weight):
            return linear(x, self.layer.weight)
        version = version_of(self.layer.weight)
        if version != self.made_of:
            self.packed, self.made_of = packed(self.layer.weight), version
        return packed_product(x, self.packed)


def version_of(weight: Tensor) -> tuple[int, int]:
    """Changes when a weight is replaced or written to. Inference tensors do not count their writes."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version  # noqa: SLF001


def can_pack(weight: Tensor) -> bool:
    """Whether this weight has the right size, on a CPU, in float32, and this torch has oneDNN's packed product."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if weight.numel() < SMALLEST or weight.nbytes > LARGEST:
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
