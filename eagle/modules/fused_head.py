"""The draft head in the form it decodes with: the same function as `Eagle3Head`, in a third of the operators.

A level of a draft is a handful of rows through one layer: what it costs is the number of operators, not the arithmetic.

    q, k, v        one product; gate and up another (weights are joined once)
    residuals      added by the product that makes the other summand
    rotary angles  looked up in a table of positions
    norms          float32 and float64: norm(x) W^T = (x / rms(x)) (W g)^T, the norm's weight g going into the matrix;
                   half precision, where the order of roundings matters: the head's own norms
    embeddings     float32 and float64: what embed(x) adds to q, k, v depends on the token alone, and a vocabulary
                   whose table has at most `LARGEST_TABLE` bytes is looked up in it

The joined weights are copies: `is_current` says whether the head still has the weights they were made of.

Shapes: B batch, n positions, D hidden, H heads, G key/value heads, E head size, P positions of the rotary table.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, silu

from eagle.modules.head import Eagle3Head
from eagle.modules.packed_linear import PackedLinear, version_of

LARGEST_TABLE = 2**26  # bytes
MOVING_ROPE = {"dynamic", "longrope"}  # angles depend on the longest position so far, which the host is asked for


class Entered(NamedTuple):
    """Before attention: residual [B, n, D], q [B, n, H, E], kv [B, n, 2, G, E], rotary positions applied."""

    residual: Tensor
    q: Tensor
    kv: Tensor


def _versions(head: Eagle3Head) -> list[tuple[int, int]]:
    """Changes when a weight is replaced or written to."""
    return [version_of(tensor) for tensor in (*head.parameters(), *(bound.weight for bound in head._bound))]


class FusedHead:
    """A head with bound embeddings, to decode with. Reads the weights when made, the rotary angles in `reserve`."""

    @torch.no_grad()
    def __init__(self, head: Eagle3Head):
        self.head, self.config, self.made_of = head, head.config, _versions(head)
        layer, attention, mlp = head.midlayer, head.midlayer.self_attn, head.midlayer.mlp
        self.heads, self.groups = self.config.num_attention_heads, self.config.num_key_value_heads
        self.dtype = head.fc.weight.dtype
        self.folded = self.dtype.itemsize >= 4
        self.epsilon = torch.tensor(self.config.rms_norm_eps, dtype=self.dtype, device=head.fc.weight.device)
        joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        of_token, of_hidden = joined.split(self.config.hidden_size, dim=1)
        if self.folded:
            of_token, of_hidden = of_token * layer.input_layernorm.weight, of_hidden * layer.hidden_norm.weight
        self.table = self._table(of_token)
        self.qkv = (torch.cat([of_token, of_hidden], 1) if self.table is None else of_hidden.contiguous()).t()
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.gate_up = self._after(layer.post_attention_layernorm, gate_up).t()
        self.o_proj, self.down_proj = attention.o_proj.weight.t(), mlp.down_proj.weight.t()
        self.output = PackedLinear(head.lm_head)
        self.angles: Tensor | None = None

    def is_current(self) -> bool:
        """Whether the head's weights are still those this form was made of."""
        return self.made_of == _versions(self.head)

    def reserve(self, positions: int) -> None:
        """Make the table of rotary angles [P, 2 E] long enough."""
        rotary = self.head.rotary
        if rotary.rope_type in MOVING_ROPE or (self.angles is not None and len(self.angles) >= positions):
            return
        self.angles = self._angles(torch.arange(positions, device=self.qkv.device)[None])[0]

    def enter(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> Entered:
        """g or h [B, n, D], the next tokens Int64[B, n], positions Int64[B, n] below the reserved ones."""
        layer, batch, n = self.head.midlayer, *tokens.shape
        normed = self._norm(layer.hidden_norm, hidden)
        qkv = self._project(normed, tokens).view(batch, n, self.heads + 2 * self.groups, -1)
        angles = self._angles(positions) if self.angles is None else embedding(positions, self.angles)
        cos, sin = angles.view(batch, n, 2, -1).split(1, dim=2)
        rotated = qkv[:, :, : self.heads + self.groups]
        swapped = rotated.roll(self.config.head_dim // 2, -1)
        rotated.mul_(cos).addcmul_(swapped, sin)
        q, kv = qkv.split([self.heads, 2 * self.groups], dim=2)
        residual = self._weighted(layer.hidden_norm, normed) if self.config.norm_before_residual else hidden
        return Entered(residual, q, kv.unflatten(2, (2, self.groups)))

    def leave(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual [B, n, D] and what attention gave [B, n, H * E] -> h [B, n, D]."""
        rows = torch.addmm(residual.flatten(0, 1), attended.flatten(0, 1), self.o_proj)
        normed = self._norm(self.head.midlayer.post_attention_layernorm, rows)
        gate, up = torch.mm(normed, self.gate_up).chunk(2, dim=-1)
        hidden = torch.addmm(rows, silu(gate).mul_(up), self.down_proj).view(residual.shape)
        return self.head.norm(hidden) if self.config.norm_output else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """h [..., D] -> draft logits [..., Vd]"""
        if not self.config.norm_output:  # the norm's weight is not folded in here: this matrix may be large
            hidden = self._weighted(self.head.norm, self._norm(self.head.norm, hidden))
        return self.output(hidden)

    def _table(self, of_token: Tensor) -> Tensor | None:
        """[V, (H + 2 G) E]: every token's part of q, k, v; None where it would be too large or rounded otherwise."""
        size = self.config.vocab_size * len(of_token) * of_token.element_size()
        if not self.folded or size > LARGEST_TABLE:
            return None
        every = torch.arange(self.config.vocab_size, device=of_token.device)
        return linear(self._norm(self.head.midlayer.input_layernorm, self.head.embed(every)), of_token)

    def _project(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """q, k, v side by side [B * n, (H + 2 G) E]."""
        if self.table is not None:
            return torch.addmm(embedding(tokens.flatten(), self.table), normed.flatten(0, 1), self.qkv)
        embedded = self._norm(self.head.midlayer.input_layernorm, self.head.embed(tokens))
        return torch.mm(torch.cat([embedded, normed], dim=-1).flatten(0, 1), self.qkv)

    def _after(self, norm: nn.Module, weight: Tensor) -> Tensor:
        """The matrix that reads what `_norm` gives."""
        return weight * norm.weight if self.folded else weight

    def _norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """norm(x), its weight left out if it is in the matrix behind it."""
        if not self.folded:
            return norm(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()

    def _weighted(self, norm: nn.Module, normed: Tensor) -> Tensor:
        """norm(x) from what `_norm` gives."""
        return normed * norm.weight if self.folded else normed

    def _angles(self, positions: Tensor) -> Tensor:
        """Int64[B, n] -> [B, n, 2 E]: the cosines, then the sines, negative in their first half."""
        cos, sin = self.head.rotary(self.qkv, positions)
        half = self.config.head_dim // 2
        return torch.cat([cos, -sin[..., :half], sin[..., half:]], dim=-1)
