"""Attention of a few rows over shared key/value heads, without copies of these.

With grouped queries, H heads share the keys and values of G. Behind a mask, stock code repeats keys and values for
every head; here the heads of a group are one head of more rows:

    query [B, H, n, E]  ->  [B, G, (H / G) n, E]        mask [B, 1, n, C]  ->  [B, 1, (H / G) n, C]

Registered with `transformers` under `NAME`, what a target on a CPU is loaded with. It equals masked SDPA up to the
order of sums and takes 0.5 to 0.8 of its time (docs/step.md).

Shapes: B batch, n rows, H heads, G key/value heads, C slots seen, E head size.
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "grouped"
FEW = 64  # rows; a part of a prompt has more, and its repeated mask would be as large as what is saved


def attend_grouped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Masked attention [B, H, n, E] of query [B, H, n, E] over keys and values [B, G, C, E].

    mask: additive, [B or 1, 1, n, C]. scale: of the scores, E ** -0.5 by default.
    """
    batch, heads, n, size = query.shape
    groups = keys.shape[1]
    rows = query.reshape(batch, groups, -1, size)  # heads of a group lie beside each other
    mask = mask.repeat(1, 1, heads // groups, 1) if n > 1 else mask
    out = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, n, size)


def grouped(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **options
) -> tuple[Tensor, None]:
    """An attention function of `transformers`: [B, n, H, E], and no weights. Prompts go through SDPA as always."""
    if attention_mask is None or query.shape[2] > FEW:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return attend_grouped(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)
