"""The draft head in the form it decodes with: the same function as `Eagle3Head` in fewer operators.

A level of a draft is a handful of rows through one layer, so its cost is the number of operators more than the
arithmetic: q, k and v are one product, gate and up another, and rotary angles come from a table. Products go through
`eagle.nn.packed`, which is what makes them fast for few rows on a CPU in float32.

The joined weights are copies: `is_current` says whether the head still has the weights they were made of.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, P positions of the rotary table.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from eagle.nn.head import Eagle3Head
from eagle.nn.packed import Product

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # angles depend on the longest position so far, which the host computes


class BeforeAttention(NamedTuple):
    """Before attention: residual [B, n, D], q [B, n, H, E], kv [B, n, 2, G, E], rotary positions applied."""

    residual: Tensor
    q: Tensor
    kv: Tensor


class FusedHead:
    """A head that is bound to its target, to decode with. Reads the weights when made, the rotary angles in `reserve`.

    Of a head with several layers this is one, the last by default; `logits` are for the last.
    """

    @torch.no_grad()
    def __init__(self, head: Eagle3Head, layer: int | None = None):
        self.head, self.config = head, head.config
        self.index = head.config.num_hidden_layers - 1 if layer is None else layer
        self.layer = head.all_layers()[self.index]
        self.window = head.config.window_of(self.index)
        self.is_last = self.index == head.config.num_hidden_layers - 1
        attention, mlp = self.layer.self_attn, self.layer.mlp
        self.heads, self.groups = self.config.num_attention_heads, self.config.num_key_value_heads
        self.qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = Product(mlp.gate_proj, mlp.up_proj)
        self.o_proj, self.down_proj = Product(attention.o_proj), Product(mlp.down_proj)
        self.output: Callable[[Tensor], Tensor] | None = None  # made at the first use: the target may be bound later
        self.angles: Tensor | None = None

    def is_current(self) -> bool:
        """Whether the head's weights are still those this form was made of. Joining weights moves them, so that their
        addresses alone say nothing.
        """
        return all(product.is_current() for product in (self.qkv, self.gate_up, self.o_proj, self.down_proj))

    def state(self) -> list[Tensor]:
        """The tensors of its own, whose addresses recorded steps depend on."""
        return [*self.qkv.state(), *self.gate_up.state(), *([] if self.angles is None else [self.angles])]

    def reserve(self, positions: int) -> None:
        """Make the table of rotary angles [P, 2 E] long enough."""
        rotary = self.head.rotary
        if rotary.rope_type in LENGTH_DEPENDENT_ROPE or (self.angles is not None and len(self.angles) >= positions):
            return
        self.angles = self._angles(torch.arange(positions, device=self.head.fc.weight.device)[None])[0]

    def before_attention(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> BeforeAttention:
        """g or h [B, n, D], the next tokens Int64[B, n], positions Int64[B, n] below the reserved ones."""
        batch, n = tokens.shape
        residual, x = self.layer.attention_input(hidden, self.head.embed(tokens))
        qkv = self.qkv(x).view(batch, n, self.heads + 2 * self.groups, -1)
        self._normalize(qkv)
        angles = self._angles(positions) if self.angles is None else embedding(positions, self.angles)
        cos, sin = angles.view(batch, n, 2, -1).split(1, dim=2)
        rotated = qkv[:, :, : self.heads + self.groups]
        swapped = rotated.roll(self.config.head_dim // 2, -1)
        rotated.mul_(cos).addcmul_(swapped, sin)
        q, kv = qkv.split([self.heads, 2 * self.groups], dim=2)
        return BeforeAttention(residual, q, kv.unflatten(2, (2, self.groups)))

    def _normalize(self, qkv: Tensor) -> None:
        """Norm the queries and keys in qkv [B, n, H + 2 G, E], in place, where the head does that."""
        q_norm, k_norm = self.layer.self_attn.q_norm, self.layer.self_attn.k_norm
        if q_norm is not None and k_norm is not None:
            qkv[:, :, : self.heads] = q_norm(qkv[:, :, : self.heads])
            keys = slice(self.heads, self.heads + self.groups)
            qkv[:, :, keys] = k_norm(qkv[:, :, keys])

    def after_attention(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual [B, n, D] and the attention output [B, n, H * E] -> h [B, n, D]."""
        rows = self.o_proj(attended) + residual
        gate, up = self.gate_up(self.layer.post_attention_layernorm(rows)).chunk(2, dim=-1)
        hidden = self.down_proj(silu(gate).mul_(up)) + rows
        return self.head.norm(hidden) if self.config.norm_output and self.is_last else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """h [..., D] -> draft logits [..., Vd]"""
        if self.output is None:
            output = self.head.output_layer()
            self.output = Product(output) if type(output) is nn.Linear else output
        return self.output(hidden if self.config.norm_output else self.head.norm(hidden))

    def _angles(self, positions: Tensor) -> Tensor:
        """Int64[B, n] -> [B, n, 2 E]: the cosines, then the sines, negative in their first half."""
        cos, sin = self.head.rotary(self.head.fc.weight, positions)
        half = self.config.head_dim // 2
        return torch.cat([cos, -sin[..., :half], sin[..., half:]], dim=-1)
