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
from eagle.nn.head import Eagle3Head
from eagle.nn.kv_cache import CacheShape, CacheWindow, RowCache


class Eagle3Drafter:
    """`Drafter` over an `Eagle3Head` with bound embeddings. A row's `held` counts pairs: one less than its `ids`."""

    ahead = 1

    def __init__(self, head: Eagle3Head):
        self.head = head.eval().requires_grad_(False)
        self.support = head.support()
        self.device = head.fc.weight.device
        self._fuse()
        config, dtype = head.config, head.fc.weight.dtype
        layers = (self.device,) * config.num_hidden_layers
        shape = CacheShape(0, config.num_key_value_heads, config.head_dim, 0, 0, layers, dtype)
        self.cache = RowCache(shape, self.device)
        self.ancestors = AncestorMask(0, 0, self.device, dtype)
        self.outputs = torch.zeros(0, 1, config.hidden_size, dtype=dtype, device=self.device)
        self._committed: Tensor | None = None

    def _fuse(self) -> None:
        """Make the fused forms of the layers anew, from the head's weights; `fused` is the last layer's."""
        *self.earlier, self.fused = [FusedHead(self.head, layer) for layer in range(self.head.config.num_hidden_layers)]

    def fork(self) -> "Eagle3Drafter":
        self.refresh()
        other = copy.copy(self)
        other.cache = self.cache.fork()
        other.ancestors = AncestorMask(0, 0, self.device, self.outputs.dtype)
        return other

    def refresh(self) -> None:
        if not self.fused.is_current():
            self._fuse()
        support = self.head.support()
        if support is not None and self.support is not None and not support.is_meta:  # meta tensors have no values
            self.support = self.support if torch.equal(support, self.support) else support

    def reserve(self, rows: int, nodes: int, capacity: int, slack: int) -> None:
        self.cache.reserve(rows, nodes, capacity, slack)
        room = self.cache.store_shape
        if self.ancestors.mask.shape != (room.batch, room.scratch + 1, room.scratch):
            dtype = self.head.fc.weight.dtype
            self.ancestors = AncestorMask(room.batch, room.scratch, self.device, dtype)
            self.outputs = torch.zeros(
                room.batch, room.scratch + 1, self.outputs.shape[2], dtype=dtype, device=self.device
            )
        for layer in (*self.earlier, self.fused):
            layer.reserve(room.capacity)
        self._committed = None

    def use(self, count: int) -> None:
        self.cache.use(count)
        self._committed = None

    def state(self) -> list[Tensor]:
        fused = [tensor for layer in (*self.earlier, self.fused) for tensor in layer.state()]
        return [*self.cache.state(), self.outputs, self.ancestors.mask, self.ancestors.depths, *fused]

    def read_prompt(self, row: int, prompt: list[int], held: int, aux_states: Tensor | None) -> None:
        """Nothing attends to the last layer yet: a prompt's pairs leave keys and values there, no outputs."""
        aux_states = self._needed(aux_states)[:, :-1]
        tokens = torch.tensor([prompt[held + 1 :]], device=self.device)
        with self.cache.only(row, held):
            if tokens.shape[1]:
                positions = torch.arange(held, len(prompt) - 1, device=self.device)[None]
                hidden = self._through_earlier(self.fused.fuse(aux_states), tokens, positions)
                _, _, kv = self.fused.before_attention(hidden, tokens, positions)
                slot = self.cache.buffer.shape.scratch + held
                self.cache.buffer.write_pair(self.fused.index, slot, kv.permute(2, 0, 3, 1, 4))
            self.cache.lengths.fill_(len(prompt) - 1)
        self.cache.held[row], self.cache.ids[row] = len(prompt) - 1, list(prompt)

    def read(self, tokens: Tensor, counts: Tensor, aux_states: Tensor | None) -> Tensor:
        cache, aux_states = self.cache, self._needed(aux_states)
        tokens, counts = tokens.to(self.device), counts.to(self.device)
        positions = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=self.device)
        hidden = self._through_earlier(self.fused.fuse(aux_states), tokens, positions)
        # Only the last token's output is needed, the others' keys and values.
        view, mask = self._committed_view(self.fused, positions)
        hidden = self.fused(hidden, tokens, positions, view, mask, (counts - 1)[:, None])
        cache.advance(counts)
        cache.longest += tokens.shape[1]
        self.rewind()
        self._committed = None
        self.outputs[: len(tokens), :1] = hidden
        return self.fused.logits(hidden)[:, 0]

    def _through_earlier(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """g [B, n, D] of committed pairs through all layers but the last, whose keys and values are written."""
        for fused in self.earlier:
            hidden = fused(hidden, tokens, positions, *self._committed_view(fused, positions))
        return hidden

    def _committed_view(self, fused: FusedHead, positions: Tensor) -> tuple[CacheWindow, Tensor]:
        """What pairs at `positions` Int64[B, n] write and see in a layer: all that is committed up to them, and the
        additive mask [B, n, slots].
        """
        buffer, window = self.cache.buffer, self.cache.window(positions.shape[1])
        first = buffer.shape.scratch
        unseen = _unseen(torch.arange(window, device=self.device), positions[:, :, None], fused.window)
        view = CacheWindow(buffer, first=first, stop=first + window, positions=positions)
        return view, _hide(unseen, self.outputs.dtype)

    def rewind(self) -> None:
        self.ancestors.clear()

    def set_held(self, read: list[int]) -> None:
        self.cache.set_held([count - 1 for count in read])
        self._committed = None

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        cache, first, (batch, count) = self.cache, self.ancestors.filled, tokens.shape
        mask, depths = self.ancestors.add(parents)
        hidden = self.outputs[:batch].gather(1, parents[:, :, None].expand(-1, -1, self.outputs.shape[-1]))
        positions = cache.lengths[:, None] - 1 + depths
        view = CacheWindow(cache.buffer, first=0, stop=cache.buffer.shape.scratch + cache.window(), start=first)
        for fused in (*self.earlier, self.fused):
            hidden = fused(hidden, tokens, positions, view, self._tree_mask(mask, depths, positions, fused.window))
        self.outputs[:batch, first + 1 : first + 1 + count] = hidden
        return self.fused.logits(hidden)

    def _tree_mask(self, ancestors: Tensor, depths: Tensor, positions: Tensor, window: int | None) -> Tensor:
        """What nodes at these depths and positions Int64[B, n] see: `ancestors` [B, n, slots], then committed tokens.

        Additive [B, n, slots + cache window]; of both only what lies within the layer's sliding `window`.
        """
        slots, (batch, count) = torch.arange(self.cache.window(), device=self.device), depths.shape
        if window is None:
            if self._committed is None:  # the same for every level
                self._committed = _hide(slots >= self.cache.lengths[:, None], ancestors.dtype)
            return torch.cat([ancestors, self._committed[:, None].expand(-1, count, -1)], dim=-1)
        far = depths[:, :, None] - self.ancestors.depths[:batch, None, 1:] >= window
        unseen = (slots >= self.cache.lengths[:, None, None]) | _unseen(slots, positions[:, :, None], window)
        return torch.cat([ancestors.masked_fill(far, -torch.inf), _hide(unseen, ancestors.dtype)], dim=-1)

    def _needed(self, aux_states: Tensor | None) -> Tensor:
        if aux_states is None:
            raise ValueError("an EAGLE-3 head reads auxiliary hidden states: load the target with the head's taps")
        return aux_states.to(self.device)


def _unseen(slots: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Bool: the committed `slots` that a query at `positions` does not see: later ones, and those past its window."""
    later = slots > positions
    return later if window is None else later | (slots <= positions - window)


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool -> additive mask: minus infinity where True."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
