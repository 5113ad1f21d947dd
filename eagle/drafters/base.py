"""What a tree builder needs from a drafter, and the ancestor bookkeeping that drafters share."""

from typing import Protocol

import torch
from torch import Tensor


class Drafter(Protocol):
    """Proposes distributions over next tokens. All tensors carry a batch dimension B; Vd is the drafter's vocabulary.

    One drafting round is `read` once, then `grow` any number of times. The root is slot 0; the i-th node ever given
    to `grow` since the last `read` is slot i (from 1).
    """

    support: Tensor | None  # Int64[Vd]: target token of every draft token; None where the vocabularies are the same
    device: torch.device  # where `read` and `grow` give their logits

    @property
    def cached_ids(self) -> list[int]:
        """Tokens read that the cache still holds, of its one row; [] where that is not known."""

    def reserve(self, batch: int, slots: int, capacity: int, slack: int, keep: int = 0) -> None:
        """Start over with room for `slots` grown nodes and `capacity` committed tokens per row.

        At most `slack` tokens are ever written past a row's length at once. With `keep` (at least 2; one row) the first
        `keep` of `cached_ids` count as read, so that the next `read` goes on after them.
        """

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows of the batch (ascending), between two rounds."""

    def remember(self, ids: list[int]) -> None:
        """Set `cached_ids`; `reserve` and `release` empty it."""

    def release(self) -> None:
        """Free the caches; `reserve` allocates others."""

    def state(self) -> list[Tensor]:
        """The tensors that outlive a step: allocated by `reserve`, then read and written in place."""

    def window(self, more: int = 0) -> int:
        """How many committed slots a pass looks at, `more` of which it writes itself: a bucket of the length."""

    def read(self, tokens: Tensor, counts: Tensor, aux: Tensor | None) -> Tensor:
        """Commit `counts` Int64[B] tokens of Int64[B, m] (right-padded); the last one is the root.

        aux [B, m, A], the auxiliary hidden states, belong to the position *before* each token ([B, m - 1, A] for the
        first `read` of a sequence, whose first token follows nothing). Returns logits [B, Vd] after the root.
        """

    def rewind(self) -> None:
        """Forget the grown nodes: the next `grow` starts at the root again."""

    def set_length_bound(self, longest: int) -> None:
        """Tighten the host-side bound on tokens read (root included), once the lengths are known on the host."""

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Add nodes (parents as slots Int64[B, n], target token ids Int64[B, n]); logits [B, n, Vd] after each."""


class AncestorMask:
    """Depth and ancestor mask of grown nodes; slot 0 (the root) is not part of the mask's columns.

    seen [B, slots + 1, slots]: row = slot, column j = grown node j + 1. Bool, True for an ancestor or the node
    itself; with a float `dtype` an additive mask, 0 there and minus infinity elsewhere.
    """

    def __init__(self, batch: int, slots: int, device: torch.device, dtype: torch.dtype = torch.bool):
        self.masked, self.visible = (0.0, 1.0) if dtype == torch.bool else (-torch.inf, 0.0)
        self.mask = torch.full((batch, slots + 1, slots), self.masked, dtype=dtype, device=device)
        self.depths = torch.zeros(batch, slots + 1, dtype=torch.int64, device=device)
        self.filled = 0

    def clear(self) -> None:
        self.filled = 0

    def keep_rows(self, rows: list[int]) -> None:
        self.mask, self.depths = self.mask[rows], self.depths[rows]

    def add(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Register nodes; their ancestor rows [B, n, slots] and depths Int64[B, n]."""
        first, count, slots = self.filled, parents.shape[1], self.mask.shape[2]
        if first + count > slots:
            raise ValueError(f"{first + count} drafted nodes: room was reserved for {slots}; reserve more slots")
        rows = self.mask.gather(1, parents[:, :, None].expand(-1, -1, slots))
        rows.diagonal(first, 1, 2).fill_(self.visible)  # a node sees itself, in column first + its place
        depths = self.depths.gather(1, parents).add_(1)
        self.mask[:, first + 1 : first + 1 + count] = rows
        self.depths[:, first + 1 : first + 1 + count] = depths
        self.filled += count
        return rows, depths
