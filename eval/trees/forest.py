"""Many continuations of one prefix in one model: every node sees the prefix and its ancestors, none sees the others.

A row of a batch has a cache of its own, with its own copy of a long shared prompt. Here everything is one tree behind
the shared tokens, in the scratch area of `CachedLM`: rows that end cost nothing more, drafts grow where the answers
lie, and forwards are as wide as there is work.

    prefix          parents of the nodes 0 .. 5: -1 0 1 -1 3 1
      |- 0 - 1 - 2
      |       `- 5
      `- 3 - 4

Shapes: n new nodes, S slots, V vocabulary.
"""

import torch
from torch import Tensor

from eagle.modules.target import CachedLM

CHUNK = 256  # nodes per forward: more of them gain nothing on a CPU, and cost memory for their logits


class Forest:
    """The nodes behind one prefix. `model` is used by the forest alone.

    filled   nodes so far; the next one gets this number
    """

    def __init__(self, model: CachedLM, prefix: list[int], slots: int):
        """Read `prefix` (at least one token); room for `slots` nodes."""
        if not prefix:
            raise ValueError("a forest needs a prefix of at least one token, such as the first one of every prompt")
        self.model, self.device, self.filled = model, model.device, 0
        model.reserve(1, slots, len(prefix), 1)
        model.prefill(torch.tensor([prefix], device=self.device), torch.tensor([len(prefix)], device=self.device))
        self.seen = torch.zeros(slots, slots, dtype=torch.bool, device=self.device)
        self.depths = torch.zeros(slots, dtype=torch.int64, device=self.device)

    def truncate(self, filled: int) -> None:
        """Forget the nodes from number `filled` on."""
        self.filled = filled

    @torch.inference_mode()
    def grow(self, tokens: list[int], parents: list[int], wanted: list[int] | None = None) -> Tensor:
        """Add nodes; parents are node numbers, those of new nodes too, or -1 for the prefix. Parents come first.

        Returns logits Float[n, V] after each, or after those `wanted` (indices into `tokens`). Raises ValueError where
        the slots do not suffice.
        """
        if self.filled + len(tokens) > len(self.seen):
            raise ValueError(f"{self.filled + len(tokens)} nodes: the forest has room for {len(self.seen)}")
        keep = set(range(len(tokens))) if wanted is None else set(wanted)
        kept = []
        for first in range(0, len(tokens), CHUNK):
            logits = self._grow(tokens[first : first + CHUNK], parents[first : first + CHUNK])
            rows = [row for row in range(len(logits)) if first + row in keep]
            kept.append(logits[rows].clone() if len(rows) < len(logits) else logits)
        return torch.cat(kept)

    def _grow(self, tokens: list[int], parents: list[int]) -> Tensor:
        first, stop = self.filled, self.filled + len(tokens)
        for node, parent in enumerate(parents, first):
            if not -1 <= parent < node:
                raise ValueError(f"node {node} has the parent {parent}: expected -1 or an earlier node")
            self.seen[node] = self.seen[parent] if parent >= 0 else False
            self.seen[node, node] = True
            self.depths[node] = self.depths[parent] + 1 if parent >= 0 else 0
        self.filled = stop
        ids = torch.tensor([tokens], device=self.device)
        return self.model.score(ids, self.depths[None, first:stop], self.seen[None, first:stop], start=first).logits[0]

    def chain(self, tokens: list[int], parent: int = -1) -> Tensor:
        """Add tokens one behind the other; logits Float[V] after the last one."""
        parents = [parent, *range(self.filled, self.filled + len(tokens) - 1)]
        return self.grow(tokens, parents, wanted=[len(tokens) - 1])[0]


class ForestDrafter:
    """A `Drafter` for tree builders: row b of the batch drafts behind its own node of a forest.

    Only what builders call; `columns` tokens are known to target and drafter.
    """

    def __init__(self, forest: Forest, columns: int, target_vocab_size: int):
        self.forest, self.columns, self.device = forest, columns, forest.device
        self.support = torch.arange(columns, device=self.device) if columns < target_vocab_size else None

    def read(self, roots: list[int], before: list[int]) -> Tensor:
        """Root tokens behind the nodes `before`; logits [B, Vd] after them."""
        first = self.forest.filled
        logits = self.forest.grow(roots, before)[:, : self.columns]
        self.nodes = torch.arange(first, first + len(roots), device=self.device)[:, None]
        return logits

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Parents as slots Int64[B, n] (the root is 0), tokens Int64[B, n]; logits [B, n, Vd]."""
        first = self.forest.filled
        above = self.nodes.gather(1, parents)
        logits = self.forest.grow(tokens.flatten().tolist(), above.flatten().tolist())
        new = torch.arange(first, first + tokens.numel(), device=self.device).view_as(tokens)
        self.nodes = torch.cat([self.nodes, new], 1)
        return logits[:, : self.columns].view(*tokens.shape, -1)
