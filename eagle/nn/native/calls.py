"""The native functions as functions of tensors (all of one dtype, contiguous, on the CPU).

Shapes: B batch, n nodes, D hidden, H heads, G key/value heads, E head size, L slots seen, A = taps * D.
"""

from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagle.nn import native

NORMS = ("input_layernorm", "hidden_norm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
LINEAR = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)


class _Matrix(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name.split(".")[-1], c_void_p) for name in NORMS),
        *((name.split(".")[-1], _Matrix) for name in LINEAR),
    ]


class _Shape(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("hidden", "heads", "groups", "head", "inner")),
        *((name, c_float) for name in ("eps", "scale", "residual")),
        ("norm_residual", c_int64),
    ]


class _Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "n", "layers", "slots")),
        ("layer", POINTER(_Layer)),
        *((name, c_void_p) for name in ("input", "embedded", "angles", "write")),
        ("cache", POINTER(c_void_p)),
        *((name, c_int64) for name in ("side", "row", "group", "first")),
        ("mask", c_void_p),
        ("mask_row", c_int64),
        ("taps", POINTER(c_int64)),
        *((name, c_void_p) for name in ("aux", "final_norm", "output")),
    ]


class LayerShape(NamedTuple):
    """What the layers of one stack share. scale: of attention scores; residual: of what a block adds to the hidden
    state; norm_residual: whether the residual of a draft head is its normed hidden state.
    """

    hidden: int
    heads: int
    groups: int
    head: int
    inner: int
    eps: float
    scale: float
    residual: float = 1.0
    norm_residual: bool = False


class Slots(NamedTuple):
    """Where a forward reads and writes. cache: per layer [2, B, G, slots, E]; first, seen: which slots are seen;
    write Int64[B, n]: where each node's keys and values go; mask [B or 1, 1, n, seen], added to scores.
    """

    cache: Sequence[Tensor]
    first: int
    seen: int
    write: Tensor
    mask: Tensor

    @classmethod
    def of(cls, window: Any, tokens: Tensor, mask: Tensor) -> "Slots":
        """Those of a `CacheWindow`, for a forward over tokens [B, n]."""
        if window.positions is None:
            write = torch.arange(window.start, window.start + tokens.shape[1]).expand(tokens.shape).contiguous()
        else:
            write = window.positions + window.buffer.shape.scratch
        return cls(window.buffer.layers, window.first, window.stop - window.first, write, mask.contiguous())


def usable(*tensors: Tensor) -> bool:
    """Whether these are what the native functions read, and there are native functions."""
    dtype = tensors[0].dtype
    return (
        dtype in native.DTYPES
        and all(x.device.type == "cpu" and x.dtype == dtype and x.is_contiguous() for x in tensors)
        and native.unavailable() is None
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] -> x W^T + b [..., out]; rows up to `native.max_rows()` are what it is for."""
    library = native.load()
    x, (out, size) = x.contiguous(), weight.shape
    y = x.new_empty((*x.shape[:-1], out))
    matrix = _Matrix(weight.data_ptr(), None if bias is None else bias.data_ptr())
    rows = x.numel() // size
    library.functions.eagle_linear(
        *map(c_int64, (library.instructions, torch.get_num_threads(), x.element_size())),
        c_void_p(x.data_ptr()),
        *map(c_int64, (rows, size, out)),
        matrix,
        c_void_p(y.data_ptr()),
    )
    return y


def totals(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [M, V] -> the log of the sum of their exponentials Float32[M] and the first of the largest Int64[M]."""
    library, (rows, columns) = native.load(), logits.shape
    log_sum, likeliest = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.int64)
    library.functions.eagle_totals(
        *map(c_int64, (library.instructions, torch.get_num_threads(), logits.element_size())),
        c_void_p(logits.data_ptr()),
        *map(c_int64, (rows, columns)),
        *map(c_void_p, (log_sum.data_ptr(), likeliest.data_ptr())),
    )
    return log_sum, likeliest


class LayerStack:
    """Decoder layers, by the names that their parameters have in `transformers`. Weights are read where they lie.

    `tensors` holds what the pointers point to, so that memory stays valid whatever happens to the model.
    """

    def __init__(self, layers: Sequence[Mapping[str, Tensor]], shape: LayerShape, final_norm: Tensor | None = None):
        self.shape, self.final_norm = shape, final_norm
        self._sources = [tensor for layer in layers for tensor in layer.values()]
        self._sources += [] if final_norm is None else [final_norm]
        self.tensors = [tensor.detach() for tensor in self._sources]
        self._addresses = [tensor.data_ptr() for tensor in self.tensors]
        self._shape = _Shape(*shape)
        self._layers = (_Layer * len(layers))(*map(_pointers, layers))

    def is_current(self) -> bool:
        """Whether the tensors still lie where they lay."""
        return [tensor.data_ptr() for tensor in self._sources] == self._addresses

    def run(
        self, hidden: Tensor, angles: Tensor, slots: Slots, taps: Sequence[int] = (), embedded: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden [B, n, D], angles Float32[B, n, 2 E] (see few_rows.cpp) -> output [B, n, D], normed where the stack
        has a norm, and the inputs of the layers `taps` (ascending) side by side [B, n, A].
        """
        library, (batch, n, width), hidden = native.load(), hidden.shape, hidden.contiguous()
        output, aux = torch.empty_like(hidden), hidden.new_empty(batch, n, len(taps) * width)
        cache, mask = slots.cache[0], slots.mask
        call = _Call(
            batch, n, len(self._layers), slots.seen,
            self._layers, hidden.data_ptr(), None if embedded is None else embedded.data_ptr(),
            angles.data_ptr(), slots.write.data_ptr(),
            (c_void_p * len(self._layers))(*(layer.data_ptr() for layer in slots.cache)),
            *cache.stride()[:3], slots.first,
            mask.data_ptr(), mask.stride(0) if mask.shape[0] > 1 else 0,
            (c_int64 * (len(taps) + 1))(*taps, -1), aux.data_ptr(),
            None if self.final_norm is None else self.final_norm.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        numbers = map(c_int64, (library.instructions, torch.get_num_threads(), hidden.element_size()))
        library.functions.eagle_layers(*numbers, byref(self._shape), byref(call))
        return output, aux if taps else None


def _pointers(layer: Mapping[str, Tensor]) -> _Layer:
    def of(name: str) -> int | None:
        return layer[name].data_ptr() if name in layer else None

    matrices = (_Matrix(of(f"{name}.weight"), of(f"{name}.bias")) for name in LINEAR)
    return _Layer(*(of(f"{name}.weight") for name in NORMS), *matrices)
