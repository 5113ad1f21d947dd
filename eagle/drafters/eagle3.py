"""Drafting with the EAGLE-3 head: committed pairs in its own cache, drafted nodes in that cache's scratch area.

The pair (feature of token t, token t+1) sits at position t. The root's pair is the last committed one, at position
c - 1 when c pairs are committed; a drafted node of depth d sits at position c - 1 + d and reads its parent's output.
"""
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eagle.buckets import bucket, whole
from eagle.cache import CacheShape, KVBuffer
from eagle.drafters.base import Lineage
from eagle.head import Eagle3Head


class Eagle3Drafter:
    """`Drafter` over an `Eagle3Head` with bound embeddings."""

    def __init__(self, head: Eagle3Head):
        self.head = head.eval().requires_grad_(False)
        self.support = head.support()
        self.device = head.fc.weight.device
        self.buffer: KVBuffer | None = None

    def reserve(self, batch: int, slots: int, capacity: int, slack: int) -> None:
        config, dtype = self.head.config, self.head.fc.weight.dtype
        room = whole(capacity + slack, self.device)
        shape = CacheShape(batch, config.num_key_value_heads, config.head_dim, slots, room, (self.device,), dtype)
        if self.buffer is None or self.buffer.shape.scratch != slots or not self.buffer.shape.fits(shape):
            self.buffer = None  # its memory is free for the new one
            self.buffer = KVBuffer(shape)
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
            self.lineage = Lineage(batch, slots, self.device)
            self.outputs = torch.zeros(batch, slots + 1, config.hidden_size, dtype=dtype, device=self.device)
        self.lengths.zero_()
        self.longest, self._limit = 0, self.buffer.shape.capacity - slack
        self.lineage.clear()

    def state(self) -> list[Tensor]:
        return [*self.buffer.stores, self.lengths, self.outputs, self.lineage.seen, self.lineage.depths]

    def window(self, more: int = 0) -> int:
        return min(bucket(self.longest + more, self.device), self.buffer.shape.capacity)

    def _advance(self, counts: Tensor) -> None:
        """Rows that are done go along with the batch; the clamp keeps what they write inside the buffer."""
        self.lengths.add_(counts).clamp_(max=self._limit)

    def _attend_over(self, mask: Tensor | None, first: int, stop: int, start: int | None, positions: Tensor | None):
        """Write the new keys and values (at slot `start`, or at committed `positions`), attend over first .. stop-1."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if positions is None:
                self.buffer.write(0, start, k, v)
            else:
                self.buffer.write_rows(0, positions, k, v)
            keys, values = self.buffer.view(0, first, stop)
            return scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=True
            )

        return attend

    def read(self, tokens: Tensor, counts: Tensor, features: Tensor | None) -> Tensor:
        tokens, counts, features = (x.to(self.device) for x in (tokens, counts, features))
        if not self.longest:  # the first token of a sequence follows no feature
            tokens, counts = tokens[:, 1:], counts - 1
        n, scratch = tokens.shape[1], self.buffer.shape.scratch
        positions = self.lengths[:, None] + torch.arange(n, device=self.device)
        if self.longest:
            window = self.window(n)
            mask = (torch.arange(window, device=self.device) <= positions[:, :, None]).unsqueeze(1)
            attend = self._attend_over(mask, scratch, scratch + window, None, positions)
        else:  # an empty cache: plain causal attention, whatever the rows' lengths
            attend = self._attend_over(None, scratch, scratch + n, scratch, None)
        hidden = self.head(self.head.fuse(features), tokens, positions, attend)
        last = hidden.gather(1, (counts - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        self._advance(counts)
        self.longest += n
        self.lineage.clear()
        self.outputs[:, :1] = last
        return self.head.logits(last[:, 0])

    def settle(self, longest: int) -> None:
        self.longest = longest - 1

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        first, count = self.lineage.filled, tokens.shape[1]
        seen, depths = self.lineage.add(parents)
        hidden = self.outputs.gather(1, parents[:, :, None].expand(-1, -1, self.outputs.shape[-1]))
        window = self.window()
        committed = torch.arange(window, device=self.device) < self.lengths[:, None]
        mask = torch.cat([seen, committed[:, None].expand(-1, count, -1)], dim=-1).unsqueeze(1)
        attend = self._attend_over(mask, 0, self.buffer.shape.scratch + window, first, None)
        output = self.head(hidden, tokens, self.lengths[:, None] - 1 + depths, attend)
        self.outputs[:, first + 1 : first + 1 + count] = output
        return self.head.logits(output)
