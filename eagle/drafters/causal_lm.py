"""Drafting with an ordinary small causal LM that shares the target's tokenizer (the paper's main tables)."""

import torch
from torch import Tensor

from eagle.drafters.base import Lineage
from eagle.modules.target import CachedLM


class CausalLMDrafter:
    """`Drafter` over a `CachedLM`: grown nodes are scored as a partial tree in the LM's scratch area."""

    def __init__(self, model, target_vocab_size: int):
        self.lm = CachedLM(model)
        self.device = self.lm.device
        # Families pad their embedding tables to different sizes: only ids that both sides know are proposed.
        self.columns = min(self.lm.vocab_size, target_vocab_size)
        self.lineage = Lineage(0, 0, self.device)
        self.support: Tensor | None = None
        if self.columns < target_vocab_size:
            self.support = torch.arange(self.columns, device=self.device)

    @property
    def cached_ids(self) -> list[int]:
        return self.lm.cached_ids

    def remember(self, ids: list[int]) -> None:
        self.lm.cached_ids = ids

    def reserve(self, batch: int, slots: int, capacity: int, slack: int, keep: int = 0) -> None:
        self.lm.reserve(batch, slots, capacity, slack, keep)
        if self.lineage.seen.shape != (batch, slots + 1, slots):
            self.lineage = Lineage(batch, slots, self.device)
        self.lineage.clear()

    def release(self) -> None:
        self.lm.release()

    def state(self) -> list[Tensor]:
        return [*self.lm.state(), self.lineage.seen, self.lineage.depths]

    def window(self, more: int = 0) -> int:
        return self.lm.window(more)

    def read(self, tokens: Tensor, counts: Tensor, aux: Tensor | None = None) -> Tensor:  # noqa: ARG002  a head's
        self.lineage.clear()
        forward = self.lm.extend if self.lm.longest else self.lm.prefill
        return forward(self._known(tokens), counts.to(self.device)).logits[:, 0, : self.columns]

    def rewind(self) -> None:
        self.lineage.clear()

    def set_length_bound(self, longest: int) -> None:
        self.lm.set_length_bound(longest)

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        first = self.lineage.filled
        seen, depths = self.lineage.add(parents)
        # The root is committed, so a node of depth d lies d - 1 positions past the committed length.
        return self.lm.score(self._known(tokens), depths - 1, seen, start=first).logits[..., : self.columns]

    def _known(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.device).clamp(max=self.lm.vocab_size - 1)
