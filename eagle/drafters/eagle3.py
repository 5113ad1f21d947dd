"""Drafting with the EAGLE-3 head: committed pairs in its own cache, drafted nodes in that cache's scratch area.

The pair (hidden states of token t, token t+1) sits at position t. The root's pair is the last committed one, at
position c - 1 when c pairs are committed; a drafted node of depth d sits at position c - 1 + d and reads its parent's
output.
"""

import copy

import torch
from torch import Tensor

from eagle.drafters.base import AncestorMask
from eagle.nn.fused_head import FusedHead
from eagle.nn.grouped_attention import attend_grouped
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheShape, RowCache


class Eagle3Drafter:
    """`Drafter` over an `Eagle3Head` with bound embeddings. A row's `held` counts pairs: one less than its `ids`."""

    ahead = 1

    def __init__(self, head: Eagle3Head):
        self.head = head.eval().requires_grad_(False)
        self.support = head.support()
        self.device = head.fc.weight.device
        self.fused = FusedHead(head)
        config, dtype = head.config, head.fc.weight.dtype
        shape = CacheShape(0, config.num_key_value_heads, config.head_dim, 0, 0, (self.device,), dtype)
        self.cache = RowCache(shape, self.device)
        self.ancestors = AncestorMask(0, 0, self.device, dtype)
        self.outputs = torch.zeros(0, 1, config.hidden_size, dtype=dtype, device=self.device)
        self._committed: Tensor | None = None

    def fork(self) -> "Eagle3Drafter":
        other = copy.copy(self)
        other.cache = self.cache.fork()
        other.ancestors = AncestorMask(0, 0, self.device, self.outputs.dtype)
        return other

    def refresh(self) -> None:
        if not self.fused.is_current():
            self.fused = FusedHead(self.head)

    def reserve(self, rows: int, nodes: int, capacity: int, slack: int) -> None:
        self.cache.reserve(rows, nodes, capacity, slack)
        room = self.cache.store_shape
        if self.ancestors.mask.shape != (room.batch, room.scratch + 1, room.scratch):
            dtype = self.head.fc.weight.dtype
            self.ancestors = AncestorMask(room.batch, room.scratch, self.device, dtype)
            self.outputs = torch.zeros(
                room.batch, room.scratch + 1, self.outputs.shape[2], dtype=dtype, device=self.device
            )
        self.fused.reserve(room.capacity)
        self._committed = None

    def use(self, count: int) -> None:
        self.cache.use(count)
        self._committed = None

    def state(self) -> list[Tensor]:
        return [*self.cache.state(), self.outputs, self.ancestors.mask, self.ancestors.depths, *self.fused.state()]

    def read_prompt(self, row: int, prompt: list[int], held: int, aux_states: Tensor | None) -> None:
        """Nothing attends yet: the pairs of a prompt leave keys and values, no outputs."""
        aux_states = self._needed(aux_states)[:, :-1]
        tokens = torch.tensor([prompt[held + 1 :]], device=self.device)
        with self.cache.only(row, held):
            if tokens.shape[1]:
                positions = torch.arange(held, len(prompt) - 1, device=self.device)[None]
                _, _, kv = self.fused.before_attention(self.head.fuse(aux_states), tokens, positions)
                self.cache.buffer.write_pair(0, self.cache.buffer.shape.scratch + held, kv.permute(2, 0, 3, 1, 4))
            self.cache.lengths.fill_(len(prompt) - 1)
        self.cache.held[row], self.cache.ids[row] = len(prompt) - 1, list(prompt)

    def read(self, tokens: Tensor, counts: Tensor, aux_states: Tensor | None) -> Tensor:
        cache, aux_states = self.cache, self._needed(aux_states)
        tokens, counts = tokens.to(self.device), counts.to(self.device)
        n, scratch = tokens.shape[1], cache.buffer.shape.scratch
        positions = cache.lengths[:, None] + torch.arange(n, device=self.device)
        residual, q, kv = self.fused.before_attention(self.head.fuse(aux_states), tokens, positions)
        cache.buffer.write_rows(0, positions, *kv.permute(2, 0, 3, 1, 4))
        # Only the last token's output is needed, the others' keys and values.
        last, window = (counts - 1)[:, None], cache.window(n)
        q = q.gather(1, last[:, :, None, None].expand(-1, -1, *q.shape[2:]))
        mask = _hide(torch.arange(window, device=self.device) > positions.gather(1, last), q.dtype)
        attended = self._attend(q, mask[:, None], scratch, scratch + window)
        residual = residual.gather(1, last[:, :, None].expand(-1, -1, residual.shape[-1]))
        hidden = self.fused.after_attention(residual, attended)
        cache.advance(counts)
        cache.longest += n
        self.rewind()
        self._committed = None
        self.outputs[: len(tokens), :1] = hidden
        return self.fused.logits(hidden)[:, 0]

    def rewind(self) -> None:
        self.ancestors.clear()

    def set_held(self, read: list[int]) -> None:
        self.cache.set_held([count - 1 for count in read])
        self._committed = None

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        cache, first, (batch, count) = self.cache, self.ancestors.filled, tokens.shape
        mask, depths = self.ancestors.add(parents)
        hidden = self.outputs[:batch].gather(1, parents[:, :, None].expand(-1, -1, self.outputs.shape[-1]))
        residual, q, kv = self.fused.before_attention(hidden, tokens, cache.lengths[:, None] - 1 + depths)
        cache.buffer.write_pair(0, first, kv.permute(2, 0, 3, 1, 4))
        window = cache.window()
        if self._committed is None:  # the same for every level
            self._committed = _hide(torch.arange(window, device=self.device) >= cache.lengths[:, None], q.dtype)
        mask = torch.cat([mask, self._committed[:, None].expand(-1, count, -1)], dim=-1)
        attended = self._attend(q, mask, 0, cache.buffer.shape.scratch + window)
        output = self.fused.after_attention(residual, attended)
        self.outputs[:batch, first + 1 : first + 1 + count] = output
        return self.fused.logits(output)

    def _needed(self, aux_states: Tensor | None) -> Tensor:
        if aux_states is None:
            raise ValueError("an EAGLE-3 head reads auxiliary hidden states: load the target with the head's taps")
        return aux_states.to(self.device)

    def _attend(self, q: Tensor, mask: Tensor, first: int, stop: int) -> Tensor:
        """q [B, n, H, E] over slots first .. stop - 1, additive mask [B, n, stop - first] -> [B, n, H * E]."""
        keys, values = self.cache.buffer.view(0, first, stop)
        return attend_grouped(q.transpose(1, 2), keys, values, mask[:, None]).transpose(1, 2).flatten(2)


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool -> additive mask: minus infinity where True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
