"""Products x W^T + b of layers that share their input, fast for few rows.

    CPU, few rows     native code reads the weights where they lie (`eagle.nn.native`)
    ... without it    oneDNN multiplies with a copy of the weights, rearranged once
    CPU, many rows    one ordinary product per layer
    GPU               one product: the layers' weights are moved into one buffer, of which they become views

A product with few rows on a CPU spends most of its time rearranging the weight, anew each time; that is what the copies
are for. One thread, ordinary / packed:

    float32, AVX2, milliseconds          1 row          3 rows         8 rows         16 rows
    49152 x 576       output layer       11.1 / 9.4     37.0 / 14.3    28.7 / 14.9    32.7 / 20.4
    1536 x 576        MLP                0.12 / 0.14    0.26 / 0.13    0.38 / 0.24    0.49 / 0.44

    bfloat16, AMX, milliseconds          1 row          8 rows         32 rows        512 rows
    49152 x 576       output layer       4.4 / 2.7      5.7 / 2.7      7.6 / 4.1
    1536 x 576        MLP                0.12 / 0.05    0.16 / 0.08    0.19 / 0.12    0.76 / 0.70

So in float32 one row, and hundreds, go the ordinary way; in bfloat16 every product is packed where the CPU multiplies
that itself. Values differ from those of `torch.nn.functional.linear` by rounding only. A copy knows the address and the
version of what it was made of, and `is_current` compares a sample of the content too: writes through `.data` change
neither.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eagle.nn import native
from eagle.nn.memory import free_bytes
from eagle.nn.native import calls
from eagle.nn.precision import has_bf16

SMALLEST = {torch.float32: 2**18, torch.bfloat16: 2**16}  # weights; below, the call costs more than packing saves
ROWS = {torch.float32: range(2, 31), torch.bfloat16: range(1, 513)}
LARGEST = 2**30  # bytes of one weight
MEMORY_SHARE = 0.25  # of the free memory, at most, that the copies of one model may take
HINT = 8  # rows the packing is made for
SAMPLE = 251  # entries of a weight that are compared with those it had when it was copied


def packed(weight: Tensor) -> Tensor:
    """W [out, in] -> its packed copy, opaque: for `packed_product` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), HINT)  # noqa: SLF001


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] and a packed W -> x W^T + bias [..., out]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001


def version_of(weight: Tensor) -> tuple[int, int]:
    """Changes when a weight is replaced or written to. Inference tensors do not count their writes."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version  # noqa: SLF001


def needs_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether autograd would follow this product; the fast ones have no derivative."""
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


def copies_fit(weights: Sequence[Tensor]) -> bool:
    """Whether packed copies of all of these leave most of the memory free."""
    return sum(weight.nbytes for weight in weights) <= MEMORY_SHARE * free_bytes(weights[0].device)


class Product:
    """x [..., in] -> the outputs of layers with the same input, side by side [..., sum of out].

    copies  whether oneDNN's packed copies may be made where there is no native code
    join    whether the layers' weights are moved into one buffer; None: on a GPU
    """

    def __init__(self, *layers: nn.Linear, copies: bool = True, join: bool | None = None):
        self.layers, self.copies = layers, copies
        alike = len({layer.bias is None for layer in layers}) == 1
        on_gpu = layers[0].weight.device.type == "cuda"
        self.joined: _Joined | None = None
        if len(layers) > 1 and alike and (on_gpu if join is None else join):
            self.joined = _Joined(layers)
        self._copy: _Copy | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.joined is not None:
            return linear(x, self.joined.weight, self.joined.bias)
        weight, rows = self.layers[0].weight, x.numel() // x.shape[-1]
        if weight.device.type == "cpu" and x.dtype == weight.dtype and not needs_gradient(x, weight):
            if calls.usable(*(layer.weight for layer in self.layers)) and rows <= native.max_rows():
                return self._apart(calls.linear, x)
            if rows in ROWS.get(weight.dtype, ()) and self.copies:
                copy = self._current_copy()
                if copy.packed is not None:
                    return packed_product(x, copy.packed, copy.bias)
        return self._apart(linear, x)

    def _apart(self, multiply: Callable[..., Tensor], x: Tensor) -> Tensor:
        """One product per layer."""
        parts = [multiply(x, layer.weight, layer.bias) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _current_copy(self) -> "_Copy":
        """The copy, made anew where a weight was replaced or written to."""
        if self._copy is None or self._copy.made_of != _versions(self.layers):
            self._copy = _Copy(self.layers)
        return self._copy

    def is_current(self) -> bool:
        """Whether joined weights are still the layers' own, and a copy still has their content."""
        if self.joined is not None and not self.joined.is_current(self.layers):
            return False
        return self._copy is None or self._copy.is_current(self.layers)

    def state(self) -> list[Tensor]:
        """What it allocated: tensors whose addresses recorded steps depend on."""
        return [] if self.joined is None else [self.joined.weight]


def _versions(layers: Sequence[nn.Linear]) -> list[tuple[int, int]]:
    return [version_of(tensor) for layer in layers for tensor in layer.parameters()]


class _Joined:
    """One buffer; the layers' parameters become views of it, with their content."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.weight = self._one([layer.weight for layer in layers])
        self.bias = self._one([layer.bias for layer in layers]) if layers[0].bias is not None else None

    @staticmethod
    @torch.no_grad()
    def _one(tensors: list[Tensor]) -> Tensor:
        whole = torch.cat(tensors)
        for part, view in zip(tensors, whole.split([len(part) for part in tensors]), strict=True):
            part.data = view
        return whole

    def is_current(self, layers: Sequence[nn.Linear]) -> bool:
        """Whether the layers' parameters still are its parts."""
        for whole, name in ((self.weight, "weight"), (self.bias, "bias")):
            place = 0 if whole is None else whole.data_ptr()
            for part in (getattr(layer, name) for layer in layers):
                if (part is None) != (whole is None) or (part is not None and part.data_ptr() != place):
                    return False
                place += 0 if part is None else part.nbytes
        return True


class _Copy:
    """oneDNN's copy of the layers' weights, joined; `packed` None: they are not to be packed."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.made_of = _versions(layers)
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self.packed = packed(weight) if can_pack(weight) else None
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.samples = [_sample(layer.weight) for layer in layers]

    def is_current(self, layers: Sequence[nn.Linear]) -> bool:
        """Whether the weights still have the content that was copied."""
        if self.packed is None:
            return True
        return self.made_of == _versions(layers) and all(
            torch.equal(_sample(layer.weight), sample) for layer, sample in zip(layers, self.samples, strict=True)
        )


def _sample(weight: Tensor) -> Tensor:
    """About `SAMPLE` entries, from everywhere."""
    return weight.detach().flatten()[:: max(weight.numel() // SAMPLE, 1)].clone()
