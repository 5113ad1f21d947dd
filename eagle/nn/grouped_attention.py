"""Attention of a few rows over shared key/value heads, without copies of these.

With grouped queries, H heads share the keys and values of G. Behind a mask, stock code repeats keys and values for
every head; here the heads of a group are one head of more rows:

    query [B, H, n, E]  ->  [B, G, (H / G) n, E]        mask [B, 1, n, C]  ->  [B, 1, (H / G) n, C]

On a CPU that pays for few rows; for more the kernel itself is told that heads share keys and values. Registered with
`transformers` under `NAME`, what a target on a CPU is loaded with. It equals masked SDPA up to the order of sums and
takes 0.3 to 0.9 of its time, the fewer rows the less (docs/step.md).

Shapes: B batch, n rows, H heads, G key/value heads, C slots seen, E head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "grouped"
FEW = 8  # rows; on a CPU heads are grouped up to here


def attend_grouped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Masked attention [B, H, n, E] of query [B, H, n, E] over keys and values [B, G, C, E].

    mask: additive, [B or 1, 1, n, C]. scale: of the scores, E ** -0.5 by default.
    """
    batch, heads, n, size = query.shape
    if n > FEW and query.device.type == "cpu":
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
    groups = keys.shape[1]
    rows = query.reshape(batch, groups, -1, size)  # heads of a group lie beside each other
    mask = mask.repeat(1, 1, heads // groups, 1) if n > 1 else mask
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, n, size)


def grouped(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **options
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: [B, n, H, E], and no weights.

    Calls without a mask, as for prompts, and ones that ask for more than a mask go through SDPA as always.
    """
    if options.get("s_aux") is not None:
        return attend_with_sinks(query, key, value, attention_mask, scaling, options["s_aux"]), None
    more = options.get("dropout") or any(options.get(name) is not None for name in ("position_bias", "softcap"))
    if attention_mask is None or more:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return attend_grouped(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


def attend_with_sinks(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None, sinks: Tensor
) -> Tensor:
    """Masked attention [B, n, H, E] in which every head h gives the share exp(sinks[h]) to no token (gpt-oss).

    mask: additive, or Bool, True where seen; None: causal, the last query sees all keys.
    """
    batch, heads, n, size = query.shape
    if mask is None:
        mask = torch.ones(n, keys.shape[2], dtype=torch.bool, device=query.device).tril(keys.shape[2] - n)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
    grouped = query.reshape(batch, keys.shape[1], -1, size)  # heads of a group lie beside each other
    scores = (grouped @ keys.transpose(-1, -2)).view(batch, heads, n, -1) * (size**-0.5 if scale is None else scale)
    column = sinks.to(scores.dtype).view(1, heads, 1, 1).expand(batch, heads, n, 1)
    weights = torch.cat([scores + mask, column], dim=-1).softmax(dim=-1, dtype=torch.float32)
    shares = weights[..., :-1].to(values.dtype).reshape(batch, keys.shape[1], -1, keys.shape[2])
    return (shares @ values).view(batch, heads, n, size).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)
