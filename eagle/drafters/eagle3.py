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
        self.fused = FusedHead(head)
        self._buffer: KVBuffer | None = None
        self.lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.longest = self._limit = 0
        self.cached_ids: list[int] = []

    def remember(self, ids: list[int]) -> None:
        self.cached_ids = ids

    def reserve(self, batch: int, slots: int, capacity: int, slack: int, keep: int = 0) -> None:
        config, dtype = self.head.config, self.head.fc.weight.dtype
        room = round_up(capacity + slack, self.device)
        shape = CacheShape(batch, config.num_key_value_heads, config.head_dim, slots, room, (self.device,), dtype)
        if not self.fused.is_current():
            self.fused = FusedHead(self.head)
        if self._buffer is None or self._buffer.shape.scratch != slots or not self._buffer.shape.fits(shape):
            old = self._buffer if keep else None
            self._buffer = None  # unless it is copied from, its memory is free for the new one
            self._buffer = KVBuffer(shape)
            if old is not None:
                self._buffer.copy_committed(old, keep - 1)
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
            self.lineage = AncestorMask(batch, slots, self.device, dtype)
            self.outputs = torch.zeros(batch, slots + 1, config.hidden_size, dtype=dtype, device=self.device)
        self.fused.reserve(self.buffer.shape.capacity)
        self.cached_ids = []
        self.longest = max(keep - 1, 0)  # a pair per token but the first
        self._limit = self.buffer.shape.capacity - slack
        self.lengths.fill_(self.longest)
        self._committed: Tensor | None = None
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
        self.lengths, self.outputs, self._committed = self.lengths[rows], self.outputs[rows], None

    def release(self) -> None:
        self._buffer, self.cached_ids = None, []

    def state(self) -> list[Tensor]:
        own = [self.lengths, self.outputs, self.lineage.mask, self.lineage.depths]
        return [*self.buffer.stores, *own, *self.fused.state()]

    def window(self, more: int = 0) -> int:
        return min(bucket(self.longest + more, self.device), self.buffer.shape.capacity)

    def _advance(self, counts: Tensor) -> None:
        """Rows that are done go along with the batch; the clamp keeps what they write inside the buffer."""
        self.lengths.add_(counts).clamp_(max=self._limit)

    def _attend(self, q: Tensor, mask: Tensor | None, first: int, stop: int) -> Tensor:
        """q [B, n, H, E] over slots first .. stop - 1 -> [B, n, H * E].

        mask: additive [B, n, stop - first]; None for n = 1 or plain causal attention.
        """
        keys, values = self.buffer.view(0, first, stop)
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
        n, scratch = tokens.shape[1], self.buffer.shape.scratch
        positions = self.lengths[:, None] + torch.arange(n, device=self.device)
        residual, q, kv = self.fused.before_attention(self.head.fuse(aux), tokens, positions)
        pair = kv.permute(2, 0, 3, 1, 4)
        last = (counts - 1)[:, None]
        if self.longest:  # only the last token's output is needed, the others' keys and values
            window = self.window(n)
            self.buffer.write_rows(0, positions, *pair)
            q = q.gather(1, last[:, :, None, None].expand(-1, -1, *q.shape[2:]))
            mask = _hide(torch.arange(window, device=self.device) > positions.gather(1, last), q.dtype)
            attended = self._attend(q, mask[:, None], scratch, scratch + window)
        else:  # an empty cache: plain causal attention, whatever the rows' lengths
            self.buffer.write_pair(0, scratch, pair)
            attended = self._attend(q, None, scratch, scratch + n)
            attended = attended.gather(1, last[:, :, None].expand(-1, -1, attended.shape[-1]))
        hidden = self.fused.after_attention(
            residual.gather(1, last[:, :, None].expand(-1, -1, residual.shape[-1])), attended
        )
        self._advance(counts)
        self.longest += n
        self.lineage.clear()
        self._committed = None
        self.outputs[:, :1] = hidden
        return self.fused.logits(hidden)[:, 0]

    def rewind(self) -> None:
        self.lineage.clear()

    def set_length_bound(self, longest: int) -> None:
        self.longest = longest - 1
        self._committed = None

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        first, count = self.lineage.filled, tokens.shape[1]
        seen, depths = self.lineage.add(parents)
        hidden = self.outputs.gather(1, parents[:, :, None].expand(-1, -1, self.outputs.shape[-1]))
        residual, q, kv = self.fused.before_attention(hidden, tokens, self.lengths[:, None] - 1 + depths)
        self.buffer.write_pair(0, first, kv.permute(2, 0, 3, 1, 4))
        window = self.window()
        if self._committed is None:  # the same for every level
            self._committed = _hide(torch.arange(window, device=self.device) >= self.lengths[:, None], q.dtype)
        mask = torch.cat([seen, self._committed[:, None].expand(-1, count, -1)], dim=-1)
        attended = self._attend(q, mask, 0, self.buffer.shape.scratch + window)
        output = self.fused.after_attention(residual, attended)
        self.outputs[:, first + 1 : first + 1 + count] = output
        return self.fused.logits(output)


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool -> additive mask: minus infinity where True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
