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
from transformers.cache_utils import Cache

from eagle.nn.kv_cache import KVBuffer, _Layer
from eagle.nn.target import CachedLM

CHUNK = 256  # nodes per forward: more of them gain nothing on a CPU, and cost memory for their logits


class Gathered(Cache):
    """What one forward reads of a buffer, behind the cache interface of `transformers`: these slots, copied together.

    It writes its keys and values at slots `start` ...; the new slots must be among `slots` Int64[m].
    """

    def __init__(self, buffer: KVBuffer, start: int, slots: Tensor):
        self.buffer, self.start, self.slots = buffer, start, slots
        super().__init__(layers=[_GatheredLayer(self, index) for index in range(len(buffer.layers))])


class _GatheredLayer(_Layer):
    """One layer of the buffer."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        """Write new keys and values [1, G, n, E]; those of all slots, each [1, G, m, E]."""
        window = self.window
        window.buffer.write(self.index, window.start, key_states, value_states)
        layer = window.buffer.layers[self.index]
        slots = window.slots.to(layer.device)
        return layer[0].index_select(2, slots), layer[1].index_select(2, slots)


class Forest:
    """The nodes behind one prefix. `model` is used by the forest alone.

    filled   nodes so far; the next one gets this number
    """

    def __init__(self, model: CachedLM, prefix: list[int], slots: int):
        """Read `prefix` (at least one token); room for `slots` nodes."""
        if not prefix:
            raise ValueError("a forest needs a prefix of at least one token, such as the first one of every prompt")
        self.model, self.device, self.filled, self.length = model, model.device, 0, len(prefix)
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

        Returns logits Float[n, V] after each, or after those `wanted` (indices into `tokens`, ascending). Raises
        ValueError where the slots do not suffice.
        """
        if self.filled + len(tokens) > len(self.seen):
            raise ValueError(f"{self.filled + len(tokens)} nodes: the forest has room for {len(self.seen)}")
        keep = range(len(tokens)) if wanted is None else wanted
        kept = []
        for first in range(0, len(tokens), CHUNK):
            rows = [row - first for row in keep if first <= row < first + CHUNK]
            kept.append(self._grow(tokens[first : first + CHUNK], parents[first : first + CHUNK], rows))
        return torch.cat(kept)

    def _grow(self, tokens: list[int], parents: list[int], rows: list[int]) -> Tensor:
        first, stop, model = self.filled, self.filled + len(tokens), self.model
        for node, parent in enumerate(parents, first):
            if not -1 <= parent < node:
                raise ValueError(f"node {node} has the parent {parent}: expected -1 or an earlier node")
            self.seen[node] = self.seen[parent] if parent >= 0 else False
            self.seen[node, node] = True
            self.depths[node] = self.depths[parent] + 1 if parent >= 0 else 0
        self.filled = stop
        visible = self.seen[first:stop, :stop]
        nodes = visible.any(0).nonzero()[:, 0]  # only what one of the new nodes sees
        scratch = model.buffer.shape.scratch
        slots = torch.cat([torch.arange(scratch, scratch + self.length, device=self.device), nodes])
        prefix = visible.new_ones(len(tokens), self.length)
        mask = model._float_mask(torch.cat([prefix, visible[:, nodes]], 1)[None])  # noqa: SLF001
        ids, positions = torch.tensor([tokens], device=self.device), self.length + self.depths[None, first:stop]
        hidden = model.model.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            **{model._cache_keyword: Gathered(model.buffer, first, slots)},  # noqa: SLF001
        ).last_hidden_state
        return model.model.get_output_embeddings()(hidden[0, rows])

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
