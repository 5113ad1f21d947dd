"""The draft head in the form it decodes with: the same function as `Eagle3Head` in fewer operators.

A level of a draft is a handful of rows through one layer, so its cost is the number of operators more than the
arithmetic. On a CPU the layer is one native call (`eagle.nn.native`); elsewhere q, k and v are one product, gate and up
another, and rotary angles come from a table.

`is_current` says whether the head still has the weights this was made of.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, P positions of the rotary table.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from eagle.nn import native
from eagle.nn.decoder import LENGTH_DEPENDENT_ROPE
from eagle.nn.grouped_attention import attend_grouped
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheWindow
from eagle.nn.native.calls import LayerShape, LayerStack, Slots, usable
from eagle.nn.packed import Product


class BeforeAttention(NamedTuple):
    """Before attention: residual [B, n, D], q [B, n, H, E], kv [B, n, 2, G, E], rotary positions applied."""

    residual: Tensor
    q: Tensor
    kv: Tensor


def at(rows: Tensor, last: Tensor) -> Tensor:
    """rows [B, n, ...] at positions `last` Int64[B, 1] -> [B, 1, ...]"""
    index = last.view(last.shape + (1,) * (rows.dim() - 2))
    return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))


class FusedHead:
    """A head that is bound to its target, to decode with. Reads the rotary angles in `reserve`.

    Of a head with several layers this is one, the last by default; `fuse` is for the first and `logits` for the last.
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
        self.fc = Product(head.fc)
        self.output: Callable[[Tensor], Tensor] | None = None  # made at the first use: the target may be bound later
        self.angles: Tensor | None = None
        self.native = self._native_layer() if usable(*head.parameters()) else None

    def _native_layer(self) -> LayerStack:
        config = self.config
        shape = LayerShape(
            config.hidden_size, self.heads, self.groups, config.head_dim, config.intermediate_size, config.rms_norm_eps,
            config.head_dim**-0.5, norm_residual=self.layer.norm_before_residual,
        )  # fmt: skip
        norm = self.head.norm.weight if config.norm_output and self.is_last else None
        return LayerStack([dict(self.layer.named_parameters())], shape, norm)

    @property
    def products(self) -> tuple[Product, ...]:
        own = (self.qkv, self.gate_up, self.o_proj, self.down_proj, self.fc)
        return (*own, self.output) if isinstance(self.output, Product) else own

    def is_current(self) -> bool:
        """Whether the head's weights are still those this form was made of. Joining weights moves them, so that their
        addresses alone say nothing.
        """
        native_is = self.native is None or self.native.is_current()
        return native_is and all(product.is_current() for product in self.products)

    def state(self) -> list[Tensor]:
        """The tensors of its own, whose addresses recorded steps depend on."""
        own = [tensor for product in self.products for tensor in product.state()]
        return [*own, *([] if self.angles is None else [self.angles])]

    def reserve(self, positions: int) -> None:
        """Make the table of rotary angles [P, 2 E] long enough."""
        rotary = self.head.rotary
        if rotary.rope_type in LENGTH_DEPENDENT_ROPE or (self.angles is not None and len(self.angles) >= positions):
            return
        self.angles = self._angles(torch.arange(positions, device=self.head.fc.weight.device)[None])[0]

    def fuse(self, features: Tensor) -> Tensor:
        """Concatenated taps [..., A F] -> g [..., D]"""
        return self.fc(self.head.normed(features))

    def __call__(
        self,
        hidden: Tensor,
        tokens: Tensor,
        positions: Tensor,
        cache: CacheWindow,
        mask: Tensor,
        last: Tensor | None = None,
    ) -> Tensor:
        """g or h [B, n, D], next tokens and positions Int64[B, n] -> h [B, n, D], or [B, 1, D] at `last` Int64[B, 1].

        Keys and values go where `cache` says. mask: additive [B, n, slots seen].
        """
        if self.native is not None and tokens.numel() <= native.max_rows():
            slots = Slots.of(cache, tokens, mask[:, None])._replace(cache=[cache.buffer.layers[self.index]])
            embedded = self.head.embed(tokens) if self.layer.hidden_norm is not None else None
            output, _ = self.native.run(hidden, self.angles_at(positions), slots, embedded=embedded)
            return output if last is None else at(output, last)
        residual, q, kv = self.before_attention(hidden, tokens, positions)
        keys, values = cache.layers[self.index].update(*kv.permute(2, 0, 3, 1, 4))
        if last is not None:
            residual, q, mask = at(residual, last), at(q, last), at(mask, last)
        attended = attend_grouped(q.transpose(1, 2), keys, values, mask[:, None]).transpose(1, 2).flatten(2)
        return self.after_attention(residual, attended)

    def before_attention(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> BeforeAttention:
        """g or h [B, n, D], the next tokens Int64[B, n], positions Int64[B, n] below the reserved ones."""
        batch, n = tokens.shape
        residual, x = self.layer.attention_input(hidden, self.head.embed(tokens))
        qkv = self.qkv(x).view(batch, n, self.heads + 2 * self.groups, -1)
        self._normalize(qkv)
        cos, sin = self.angles_at(positions).view(batch, n, 2, -1).split(1, dim=2)
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

    def angles_at(self, positions: Tensor) -> Tensor:
        """Int64[B, n] -> Float32[B, n, 2 E]: the cosines, then the sines, negative in their first half."""
        return self._angles(positions) if self.angles is None else embedding(positions, self.angles)

    def _angles(self, positions: Tensor) -> Tensor:
        cos, sin = self.head.rotary(positions.new_empty(0, dtype=torch.float32), positions)
        half = self.config.head_dim // 2
        return torch.cat([cos, -sin[..., :half], sin[..., half:]], dim=-1)
