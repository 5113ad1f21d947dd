"""The product with a large matrix of weights, lm_head's, with a gradient laid out for speed.

x [M, D] and weight [V, D] -> x weight^T [M, V]. Autograd computes the weight's gradient as g^T x, which reads g
transposed; as (x^T g)^T only the narrow x is transposed: 28 instead of 51 ms for M = 1,920, V = 8,192, D = 576 in
bfloat16 on one core with AMX.
"""

import torch
from torch import Tensor


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, upstream):
        x, weight = ctx.saved_tensors
        return upstream @ weight, (x.t().contiguous() @ upstream).t()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, D], weight [V, D] -> [M, V], in autocast's dtype where autocast is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    return _Product.apply(x, weight)
