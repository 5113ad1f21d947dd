"""Tree attention in two parts, merged by log-sum-exp: no mask as wide as the cache.

    prefix   every node sees all committed tokens of its row: attention without a mask, up to the row's length
    tree     every node sees its ancestors: n x S scores with the tree mask

With o_a the attention over part a alone and l_a the log of the sum of its exponentiated scores,

    l = log(exp l_prefix + exp l_tree),        o = exp(l_prefix - l) o_prefix + exp(l_tree - l) o_tree

On a GPU the prefix part goes to flash-attn where it is installed (half precision only), else to FlexAttention. On a CPU
it goes to plain torch, which is there to be compared with. The function is registered with `transformers` under `NAME`,
so that stock models select it by name; prompts go through SDPA as always.

Shapes: B batch, H heads, G key/value heads, n nodes, S scratch slots, C committed slots, E head size.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "split_prefix"
SMALLEST_HEAD = 16  # that FlexAttention takes on a GPU


class Part(NamedTuple):
    """Attention over some of the keys: output [B, H, n, E] and lse Float32[B, H, n] of the scores (natural log)."""

    output: Tensor
    lse: Tensor


# (query [B, H, n, E], keys [B, G, C, E], values [B, G, C, E], lengths Int64[B], scale) -> Part
PrefixAttention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Part]


def merge(a: Part, b: Part) -> Tensor:
    """Attention over the keys of both: [B, H, n, E]. A part that sees nothing has the lowest lse and so no weight."""
    lse = torch.logaddexp(a.lse, b.lse)
    of_a, of_b = (a.lse - lse).exp().unsqueeze(-1), (b.lse - lse).exp().unsqueeze(-1)
    return (a.output * of_a + b.output * of_b).to(a.output.dtype)


def dense(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Part:
    """All scores at once, plus an additive mask that broadcasts to [B, H, n, C]."""
    grouped = query.reshape(query.shape[0], keys.shape[1], -1, query.shape[3])  # heads of a group beside each other
    scores = (grouped @ keys.transpose(-1, -2)).float().unflatten(2, (-1, query.shape[2])).flatten(1, 2)
    scores = scores * scale + mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().to(values.dtype)
    output = weights.reshape(*grouped.shape[:3], -1) @ values
    return Part(output.view(query.shape), lse)


def by_torch(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Part:
    """Plain torch, any device and dtype."""
    beyond = torch.arange(keys.shape[2], device=keys.device) >= lengths[:, None]
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(beyond.shape, device=keys.device).masked_fill_(beyond, lowest)
    return dense(query, keys, values, mask[:, None, None], scale)


def by_flex(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Part:
    """FlexAttention, compiled on a GPU."""

    def within(score: Tensor, row: Tensor, _head: Tensor, _node: Tensor, slot: Tensor) -> Tensor:
        return torch.where(slot < lengths[row], score, -torch.inf)

    attend, with_lse = _flex(query.device.type == "cuda")
    output, aux = attend(query, keys, values, score_mod=within, scale=scale, enable_gqa=True, return_aux=with_lse)
    return Part(output, aux.lse)


@cache
def _flex(compiled: bool) -> tuple[Any, Any]:
    """The operator, and what to ask it for beside the output."""
    with warnings.catch_warnings():  # torch's own, on the way to what it compiles with
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        return torch.compile(flex_attention) if compiled else flex_attention, AuxRequest(lse=True)


def by_flash(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Part:
    """flash-attn, reading the cache where it lies; half precision."""
    from flash_attn import flash_attn_with_kvcache

    output, lse = flash_attn_with_kvcache(
        *(x.transpose(1, 2) for x in (query, keys, values)),
        cache_seqlens=lengths.to(torch.int32),
        softmax_scale=scale,
        causal=False,
        return_softmax_lse=True,
    )
    lse = lse.masked_fill((lengths == 0)[:, None, None], torch.finfo(lse.dtype).min)  # of no keys it gives +inf
    return Part(output.transpose(1, 2), lse)


@cache
def choose(device: str, dtype: torch.dtype) -> PrefixAttention:
    """The fastest prefix attention at hand for a device type."""
    if device != "cuda":
        return by_torch
    half = dtype in (torch.float16, torch.bfloat16)
    return by_flash if half and find_spec("flash_attn") else by_flex


def split_prefix(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_lengths: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: [B, n, H, E], and no weights.

    With `prefix_lengths` Int64[B], keys and values are S scratch slots and then the committed ones, and the mask
    [B, 1, n, S] is the tree's alone. Without, masked SDPA.
    """
    if prefix_lengths is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    nodes = attention_mask.shape[-1]
    attend = choose(query.device.type, query.dtype)
    if attend is by_flex and query.is_cuda and query.shape[-1] < SMALLEST_HEAD:
        attend = by_torch
    prefix = attend(query, key[:, :, nodes:], value[:, :, nodes:], prefix_lengths.to(query.device), scale)
    tree = dense(query, key[:, :, :nodes], value[:, :, :nodes], attention_mask.float(), scale)
    return merge(prefix, tree).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, split_prefix)
AttentionMaskInterface.register(NAME, sdpa_mask)
