"""How weights lie in memory while decoding on a CPU: column by column.

A step multiplies few rows (a level of a draft, the nodes of a tree) by each weight [out, in]. On a CPU the float32
product x W^T of 4 to 60 such rows is up to three times faster when W^T is the matrix that lies contiguous in memory;
one row, and hundreds, take the same time either way (`python -m benchmarks.weight_order`). The values stay what they
are, and so does the shape: only the strides change.
"""
from torch import Tensor, float32, nn

LARGEST_COPY = 2**28  # bytes; a tied output layer gets a copy of its own up to this size, because lookups want rows


def column_major(weight: Tensor) -> Tensor:
    """The same matrix [out, in], its transpose contiguous."""
    return weight.t().contiguous().t()


def order_for_decoding(module: nn.Module) -> None:
    """Lay out the float32 CPU weights of every linear layer of `module` column by column, in place.

    A weight that an embedding shares is copied for the linear layer if it has at most `LARGEST_COPY` bytes, and left
    alone if it has more. Other devices and dtypes are left alone: their libraries do not care.
    """
    shared = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        weight = layer.weight
        if weight.device.type != "cpu" or weight.dtype != float32:
            continue
        if id(weight) not in shared:
            weight.data = column_major(weight.data)
        elif weight.nbytes <= LARGEST_COPY:
            layer.weight = nn.Parameter(column_major(weight.data), requires_grad=weight.requires_grad)
