"""Drafting with the EAGLE-3 head: committed pairs in its own cache, drafted nodes in that cache's scratch area.

The pair (hidden states of token t, token t+1) sits at position t. The root's pair is the last committed one, at
position c - 1 when c pairs are committed; a drafted node of depth d sits at position c - 1 + d and reads its parent's
output.
"""

import torch
from torch import Tensor

from eagle.drafters.base import AncestorMask
from eagle.nn.fused_head import FusedHead
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheShape, CacheWindow, KVBuffer, bucket, round_up


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

    def read(self, tokens: Tensor, counts: Tensor, aux: Tensor | None) -> Tensor:
        if aux is None:
            raise ValueError("an EAGLE-3 head reads auxiliary hidden states: load the target with the head's taps")
        tokens, counts, aux = tokens.to(self.device), counts.to(self.device), aux.to(self.device)
        if not self.longest:  # the first token of a sequence follows no hidden state
            tokens, counts = tokens[:, 1:], counts - 1
        n, scratch = tokens.shape[1], self.buffer.shape.scratch
        positions = self.lengths[:, None] + torch.arange(n, device=self.device)
        if self.longest:
            window = self.window(n)
            cache = CacheWindow(self.buffer, first=scratch, stop=scratch + window, positions=positions)
            mask = _hide(torch.arange(window, device=self.device) > positions[:, :, None], self.outputs.dtype)
        else:  # an empty cache: plain causal attention, whatever the rows' lengths
            cache, mask = CacheWindow(self.buffer, first=scratch, stop=scratch + n, start=scratch), None
        # Only the last token's output is needed, the others' keys and values.
        hidden = self.fused(self.fused.fuse(aux), tokens, positions, cache, mask, last=(counts - 1)[:, None])
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
        window = self.window()
        if self._committed is None:  # the same for every level
            committed = torch.arange(window, device=self.device) >= self.lengths[:, None]
            self._committed = _hide(committed, self.outputs.dtype)
        mask = torch.cat([seen, self._committed[:, None].expand(-1, count, -1)], dim=-1)
        cache = CacheWindow(self.buffer, first=0, stop=self.buffer.shape.scratch + window, start=first)
        output = self.fused(hidden, tokens, self.lengths[:, None] - 1 + depths, cache, mask)
        self.outputs[:, first + 1 : first + 1 + count] = output
        return self.fused.logits(output)


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool -> additive mask: minus infinity where True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
