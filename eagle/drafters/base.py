"""What a tree builder needs from a drafter, and the ancestor bookkeeping that drafters share."""

from typing import Protocol

import torch
from torch import Tensor

from eagle.nn.kv_cache import RowCache


class Drafter(Protocol):
    """Proposes distributions over next tokens. All tensors carry a batch dimension B; Vd is the drafter's vocabulary.

    One drafting round is `read` once, then `grow` any number of times. The root has draft index 0; the i-th node ever
    given to `grow` since the last `read` has draft index i (from 1).
    """

    support: Tensor | None  # Int64[Vd]: target token of every draft token; None where the vocabularies are the same
    device: torch.device  # where `read` and `grow` give their logits
    ahead: int  # how many of a row's `ids` the cache has no entry for: 1 where an entry is a pair of tokens

    @property
    def cache(self) -> RowCache:
        """Rows, their lengths and what they hold; a row's `ids` are the tokens read, the root included."""

    def fork(self) -> "Drafter":
        """The same weights, refreshed, with cache rows of its own, none allocated."""

    def refresh(self) -> None:
        """Make what was made of the weights anew where they have changed; between two rounds."""

    def reserve(self, rows: int, nodes: int, capacity: int, slack: int) -> None:
        """Room for `nodes` grown nodes and `capacity` committed tokens of each row; what rows hold stays.

        At most `slack` tokens are ever written past a row's length at once.
        """

    def use(self, count: int) -> None:
        """Rounds are about rows 0 .. `count` - 1 from now on."""

    def read_prompt(self, row: int, prompt: list[int], held: int, aux_states: Tensor | None) -> None:
        """Read a prompt into a row, up to its last token: the root, which the next `read` brings, follows it.

        held         how many of the prompt's first tokens the target did not read again; `ids` of the row begin with
                     one more of them than that, where it is not 0
        aux_states   [1, L - held, A]: auxiliary hidden states at the others
        """

    def state(self) -> list[Tensor]:
        """The tensors that outlive a step, read and written in place."""

    def read(self, tokens: Tensor, counts: Tensor, aux_states: Tensor | None) -> Tensor:
        """Commit `counts` Int64[B] tokens of Int64[B, m] (right-padded); the last one is the root.

        aux_states [B, m, A] belong to the position *before* each token. Returns logits [B, Vd] after the root.
        """

    def rewind(self) -> None:
        """Forget the grown nodes: the next `grow` starts at the root again."""

    def set_held(self, read: list[int]) -> None:
        """Tokens read of each row (root included), once they are known on the host."""

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Add nodes (parents as draft indices Int64[B, n], target token ids Int64[B, n]); logits [B, n, Vd] after."""


class AncestorMask:
    """Depth and ancestor mask of grown nodes; draft index 0 (the root) is not part of the mask's columns.

    mask [B, nodes + 1, nodes]: row = draft index, column j = grown node j + 1. Bool, True for an ancestor or the node
    itself; with a float `dtype` an additive mask, 0 there and minus infinity elsewhere.
    """

    def __init__(self, batch: int, nodes: int, device: torch.device, dtype: torch.dtype = torch.bool):
        self.masked, self.visible = (0.0, 1.0) if dtype == torch.bool else (-torch.inf, 0.0)
        self.mask = torch.full((batch, nodes + 1, nodes), self.masked, dtype=dtype, device=device)
        self.depths = torch.zeros(batch, nodes + 1, dtype=torch.int64, device=device)
        self.filled = 0

    def clear(self) -> None:
        self.filled = 0

    def add(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Register nodes of the first B rows; their ancestor rows [B, n, nodes] and depths Int64[B, n]."""
        first, (batch, count), nodes = self.filled, parents.shape, self.mask.shape[2]
        if first + count > nodes:
            raise ValueError(f"{first + count} drafted nodes: room was reserved for {nodes}; reserve more")
        rows = self.mask[:batch].gather(1, parents[:, :, None].expand(-1, -1, nodes))
        rows.diagonal(first, 1, 2).fill_(self.visible)  # a node sees itself, in column first + its place
        depths = self.depths[:batch].gather(1, parents).add_(1)
        self.mask[:batch, first + 1 : first + 1 + count] = rows
        self.depths[:batch, first + 1 : first + 1 + count] = depths
        self.filled += count
        return rows, depths
