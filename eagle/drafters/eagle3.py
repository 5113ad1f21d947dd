"""Drafting with the EAGLE-3 head: committed pairs in its own cache, drafted nodes in that cache's scratch area.

The pair (hidden states of token t, token t+1) sits at position t. The root's pair is the last committed one, at
position c - 1 when c pairs are committed; a drafted node of depth d sits at position c - 1 + d and reads its parent's
output.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eagle.drafters.base import AncestorMask
from eagle.nn.fused_head import FusedHead
from eagle.nn.grouped_attention import attend_grouped
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheShape, KVBuffer, bucket, round_up


class Eagle3Drafter:
    """`Drafter` over an `Eagle3Head` with bound embeddings."""

    def __init__(self, head: Eagle3Head):
        self.head = head.eval().requires_grad_(False)
        self.support = head.support()
        self.device = head.fc.weight.device
        self._fuse()
        self._buffer: KVBuffer | None = None
        self.lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.longest = self._limit = 0
        self.cached_ids: list[int] = []

    def _fuse(self) -> None:
        """Make the fused forms of the layers anew, from the head's weights; `fused` is the last layer's."""
        *self.earlier, self.fused = [FusedHead(self.head, layer) for layer in range(self.head.config.num_hidden_layers)]

    def remember(self, ids: list[int]) -> None:
        self.cached_ids = ids

    def reserve(self, batch: int, slots: int, capacity: int, slack: int, keep: int = 0) -> None:
        config, dtype = self.head.config, self.head.fc.weight.dtype
        room = round_up(capacity + slack, self.device)
        layers = (self.device,) * config.num_hidden_layers
        shape = CacheShape(batch, config.num_key_value_heads, config.head_dim, slots, room, layers, dtype)
        if not self.fused.is_current():
            self._fuse()
        if self._buffer is None or self._buffer.shape.scratch != slots or not self._buffer.shape.fits(shape):
            old = self._buffer if keep else None
            self._buffer = None  # unless it is copied from, its memory is free for the new one
            self._buffer = KVBuffer(shape)
            if old is not None:
                self._buffer.copy_committed(old, keep - 1)
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
            self.lineage = AncestorMask(batch, slots, self.device, dtype)
            self.outputs = torch.zeros(batch, slots + 1, config.hidden_size, dtype=dtype, device=self.device)
        for layer in (*self.earlier, self.fused):
            layer.reserve(self.buffer.shape.capacity)
        self.cached_ids = []
        self.longest = max(keep - 1, 0)  # a pair per token but the first
        self._limit = self.buffer.shape.capacity - slack
        self.lengths.fill_(self.longest)
        self._committed: dict[int | None, Tensor] = {}  # by window; the same for every level of a tree
        self.lineage.clear()

    @property
    def buffer(self) -> KVBuffer:
        """The head's keys and values. RuntimeError before `reserve`."""
        if self._buffer is None:
            raise RuntimeError("the drafter has no cache: call reserve first")
        return self._buffer

    def keep_rows(self, rows: list[int]) -> None:
        self.buffer.keep_rows(rows)
        self.lineage.keep_rows(rows)
        self.lengths, self.outputs, self._committed = self.lengths[rows], self.outputs[rows], {}

    def release(self) -> None:
        self._buffer, self.cached_ids = None, []

    def state(self) -> list[Tensor]:
        own = [self.lengths, self.outputs, self.lineage.mask, self.lineage.depths]
        fused = [tensor for layer in (*self.earlier, self.fused) for tensor in layer.state()]
        return [*self.buffer.stores, *own, *fused]

    def window(self, more: int = 0) -> int:
        return min(bucket(self.longest + more, self.device), self.buffer.shape.capacity)

    def _advance(self, counts: Tensor) -> None:
        """Rows that are done go along with the batch; the clamp keeps what they write inside the buffer."""
        self.lengths.add_(counts).clamp_(max=self._limit)

    def _attend(self, layer: int, q: Tensor, mask: Tensor | None, first: int, stop: int) -> Tensor:
        """q [B, n, H, E] over slots first .. stop - 1 of a layer -> [B, n, H * E].

        mask: additive [B, n, stop - first]; None for n = 1 or plain causal attention.
        """
        keys, values = self.buffer.view(layer, first, stop)
        if mask is None:
            q = q.transpose(1, 2)
            out = scaled_dot_product_attention(q, keys, values, is_causal=q.shape[2] > 1, enable_gqa=True)
            return out.transpose(1, 2).flatten(2)
        return attend_grouped(q.transpose(1, 2), keys, values, mask[:, None]).transpose(1, 2).flatten(2)

    def read(self, tokens: Tensor, counts: Tensor, aux: Tensor | None) -> Tensor:
        if aux is None:
            raise ValueError("an EAGLE-3 head reads auxiliary hidden states: load the target with the head's taps")
        tokens, counts, aux = tokens.to(self.device), counts.to(self.device), aux.to(self.device)
        if not self.longest:  # the first token of a sequence follows no hidden state
            tokens, counts = tokens[:, 1:], counts - 1
        n = tokens.shape[1]
        positions = self.lengths[:, None] + torch.arange(n, device=self.device)
        hidden = self.head.fuse(aux)
        for fused in self.earlier:
            residual, q, kv = fused.before_attention(hidden, tokens, positions)
            attended = self._read(fused.index, q, kv.permute(2, 0, 3, 1, 4), positions, positions)
            hidden = fused.after_attention(residual, attended)
        residual, q, kv = self.fused.before_attention(hidden, tokens, positions)
        pair, last = kv.permute(2, 0, 3, 1, 4), (counts - 1)[:, None]
        if self.longest or self.fused.window:  # only the last token's output is needed, the others' keys and values
            q = q.gather(1, last[:, :, None, None].expand(-1, -1, *q.shape[2:]))
            attended = self._read(self.fused.index, q, pair, positions, positions.gather(1, last))
        else:
            attended = self._read(self.fused.index, q, pair, positions, positions)
            attended = attended.gather(1, last[:, :, None].expand(-1, -1, attended.shape[-1]))
        hidden = self.fused.after_attention(
            residual.gather(1, last[:, :, None].expand(-1, -1, residual.shape[-1])), attended
        )
        self._advance(counts)
        self.longest += n
        self.lineage.clear()
        self._committed = {}
        self.outputs[:, :1] = hidden
        return self.fused.logits(hidden)[:, 0]

    def _read(self, layer: int, q: Tensor, pair: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        """Write keys and values `pair` [2, B, G, n, E] of `positions` Int64[B, n] behind the committed ones; attention
        [B, m, H * E] of the queries [B, m, H, E] `at` positions Int64[B, m] over all of them.
        """
        n, scratch, window = positions.shape[1], self.buffer.shape.scratch, self.head.config.window_of(layer)
        if not self.longest and not window:  # an empty cache: plain causal attention, whatever the rows' lengths
            self.buffer.write_pair(layer, scratch, pair)
            return self._attend(layer, q, None, scratch, scratch + n)
        slots = self.window(n)
        self.buffer.write_rows(layer, positions, *pair)
        mask = _hide(_unseen(torch.arange(slots, device=self.device), at[:, :, None], window), q.dtype)
        return self._attend(layer, q, mask, scratch, scratch + slots)

    def rewind(self) -> None:
        self.lineage.clear()

    def set_length_bound(self, longest: int) -> None:
        self.longest = longest - 1
        self._committed = {}

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        first, count = self.lineage.filled, tokens.shape[1]
        seen, depths = self.lineage.add(parents)
        hidden = self.outputs.gather(1, parents[:, :, None].expand(-1, -1, self.outputs.shape[-1]))
        positions = self.lengths[:, None] - 1 + depths
        for fused in (*self.earlier, self.fused):
            residual, q, kv = fused.before_attention(hidden, tokens, positions)
            self.buffer.write_pair(fused.index, first, kv.permute(2, 0, 3, 1, 4))
            mask = self._tree_mask(seen, depths, positions, fused.window)
            attended = self._attend(fused.index, q, mask, 0, self.buffer.shape.scratch + self.window())
            hidden = fused.after_attention(residual, attended)
        self.outputs[:, first + 1 : first + 1 + count] = hidden
        return self.fused.logits(hidden)

    def _tree_mask(self, seen: Tensor, depths: Tensor, positions: Tensor, window: int | None) -> Tensor:
        """What nodes at these depths and positions Int64[B, n] see: their ancestors `seen` [B, n, slots], then the
        committed tokens. [B, n, slots + window of the cache], additive.
        """
        slots = torch.arange(self.window(), device=self.device)
        if not window:
            if None not in self._committed:
                self._committed[None] = _hide(slots >= self.lengths[:, None], seen.dtype)
            committed = self._committed[None][:, None].expand(-1, seen.shape[1], -1)
            return torch.cat([seen, committed], dim=-1)
        near = depths[:, :, None] - self.lineage.depths[:, None, 1:] < window
        unseen = (slots >= self.lengths[:, None, None]) | _unseen(slots, positions[:, :, None], window)
        return torch.cat([seen.masked_fill(~near, -torch.inf), _hide(unseen, seen.dtype)], dim=-1)


def _unseen(slots: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Bool: the committed `slots` that a query at `positions` does not see: later ones, and those past its window."""
    later = slots > positions
    return later | (slots <= positions - window) if window else later


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool -> additive mask: minus infinity where True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
