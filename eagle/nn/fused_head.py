"""The draft head in the form it decodes with: the same function as `Eagle3Head` in fewer operators.

A level of a draft is a handful of rows through one layer, so its cost is the number of operators more than the
arithmetic. On a CPU the layer is one native call (`eagle.nn.native`); elsewhere q, k and v are one product, gate and up
another, and rotary angles come from a table.

`is_current` says whether the head still has the weights this was made of.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, P positions of the rotary table.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention, silu

from eagle.nn import native
from eagle.nn.decoder import LENGTH_DEPENDENT_ROPE
from eagle.nn.grouped_attention import attend_grouped
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheWindow
from eagle.nn.native.calls import LayerShape, LayerStack, Slots, usable
from eagle.nn.packed import Product, version_of


class BeforeAttention(NamedTuple):
    """Before attention: residual [B, n, D], q [B, n, H, E], kv [B, n, 2, G, E], rotary positions applied."""

    residual: Tensor
    q: Tensor
    kv: Tensor


def _versions(head: Eagle3Head) -> list[tuple[int, int]]:
    """Changes when a weight is replaced or written to."""
    return [version_of(tensor) for tensor in head.parameters()]


def at(rows: Tensor, last: Tensor) -> Tensor:
    """rows [B, n, ...] at positions `last` Int64[B, 1] -> [B, 1, ...]"""
    index = last.view(last.shape + (1,) * (rows.dim() - 2))
    return rows.gather(1, index.expand(-1, -1, *rows.shape[2:]))


class FusedHead:
    """A head with bound embeddings, to decode with. Reads the rotary angles in `reserve`."""

    @torch.no_grad()
    def __init__(self, head: Eagle3Head):
        self.head, self.config = head, head.config
        attention, mlp = head.midlayer.self_attn, head.midlayer.mlp
        self.heads, self.groups = self.config.num_attention_heads, self.config.num_key_value_heads
        self.qkv = Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up = Product(mlp.gate_proj, mlp.up_proj)
        self.o_proj, self.down_proj = Product(attention.o_proj), Product(mlp.down_proj)
        self.fc, self.output = Product(head.fc), Product(head.lm_head)
        self.angles: Tensor | None = None
        self.native = self._native_layer() if usable(*head.parameters()) else None
        self.made_of = _versions(head)

    def _native_layer(self) -> LayerStack:
        config = self.config
        shape = LayerShape(
            config.hidden_size, self.heads, self.groups, config.head_dim, config.intermediate_size, config.rms_norm_eps,
            config.head_dim**-0.5, norm_residual=config.norm_before_residual,
        )  # fmt: skip
        norm = self.head.norm.weight if config.norm_output else None
        return LayerStack([dict(self.head.midlayer.named_parameters())], shape, norm)

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.gate_up, self.o_proj, self.down_proj, self.fc, self.output

    def is_current(self) -> bool:
        """Whether the head's weights are still those this form was made of."""
        return self.made_of == _versions(self.head) and all(product.is_current() for product in self.products)

    def state(self) -> list[Tensor]:
        """The tensors of its own, whose addresses recorded steps depend on."""
        own = [] if self.angles is None else [self.angles]
        return own + [tensor for product in self.products for tensor in product.state()]

    def reserve(self, positions: int) -> None:
        """Make the table of rotary angles, Float32[P, 2 E], long enough."""
        rotary = self.head.rotary
        if rotary.rope_type in LENGTH_DEPENDENT_ROPE or (self.angles is not None and len(self.angles) >= positions):
            return
        self.angles = self._angles(torch.arange(positions, device=self.head.fc.weight.device)[None])[0]

    def fuse(self, features: Tensor) -> Tensor:
        """Concatenated taps [..., 3F] -> g [..., D]"""
        return self.fc(self.head.normed(features))

    def __call__(
        self,
        hidden: Tensor,
        tokens: Tensor,
        positions: Tensor,
        cache: CacheWindow,
        mask: Tensor | None,
        last: Tensor | None = None,
    ) -> Tensor:
        """g or h [B, n, D], next tokens and positions Int64[B, n] -> h [B, n, D], or [B, 1, D] at `last` Int64[B, 1].

        Keys and values go where `cache` says. mask: additive [B, n, slots seen]; None: plain causal attention.
        """
        if self.native is not None and mask is not None and tokens.numel() <= native.max_rows():
            slots = Slots.of(cache, tokens, mask[:, None])
            embedded = self.head.embed(tokens)
            output, _ = self.native.run(hidden, self.angles_at(positions), slots, embedded=embedded)
            return output if last is None else at(output, last)
        residual, q, kv = self.before_attention(hidden, tokens, positions)
        keys, values = cache.layers[0].update(*kv.permute(2, 0, 3, 1, 4))
        if mask is None:
            q = q.transpose(1, 2)
            attended = scaled_dot_product_attention(q, keys, values, is_causal=q.shape[2] > 1, enable_gqa=True)
            attended = attended.transpose(1, 2).flatten(2)
            return self.after_attention(
                *((residual, attended) if last is None else (at(residual, last), at(attended, last)))
            )
        if last is not None:
            residual, q, mask = at(residual, last), at(q, last), at(mask, last)
        attended = attend_grouped(q.transpose(1, 2), keys, values, mask[:, None]).transpose(1, 2).flatten(2)
        return self.after_attention(residual, attended)

    def before_attention(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> BeforeAttention:
        """g or h [B, n, D], the next tokens Int64[B, n], positions Int64[B, n] below the reserved ones."""
        layer, batch, n = self.head.midlayer, *tokens.shape
        normed = layer.hidden_norm(hidden)
        wide = torch.cat([layer.input_layernorm(self.head.embed(tokens)), normed], dim=-1)
        qkv = self.qkv(wide).view(batch, n, self.heads + 2 * self.groups, -1)
        cos, sin = self.angles_at(positions).view(batch, n, 2, -1).split(1, dim=2)
        rotated = qkv[:, :, : self.heads + self.groups]
        swapped = rotated.roll(self.config.head_dim // 2, -1)
        rotated.mul_(cos).addcmul_(swapped, sin)
        q, kv = qkv.split([self.heads, 2 * self.groups], dim=2)
        return BeforeAttention(
            normed if self.config.norm_before_residual else hidden, q, kv.unflatten(2, (2, self.groups))
        )

    def after_attention(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual [B, n, D] and the attention output [B, n, H * E] -> h [B, n, D]."""
        rows = self.o_proj(attended) + residual
        gate, up = self.gate_up(self.head.midlayer.post_attention_layernorm(rows)).chunk(2, dim=-1)
        hidden = self.down_proj(silu(gate).mul_(up)) + rows
        return self.head.norm(hidden) if self.config.norm_output else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """h [..., D] -> draft logits [..., Vd]"""
        return self.output(hidden if self.config.norm_output else self.head.norm(hidden))

    def angles_at(self, positions: Tensor) -> Tensor:
        """Int64[B, n] -> Float32[B, n, 2 E]: the cosines, then the sines, negative in their first half."""
        return self._angles(positions) if self.angles is None else embedding(positions, self.angles)

    def _angles(self, positions: Tensor) -> Tensor:
        cos, sin = self.head.rotary(positions.new_empty(0, dtype=torch.float32), positions)
        half = self.config.head_dim // 2
        return torch.cat([cos, -sin[..., :half], sin[..., half:]], dim=-1)
