"""Drafting with an ordinary small causal LM that shares the target's tokenizer (the paper's main tables)."""

import copy
from typing import Any

import torch
from torch import Tensor

from eagle.drafters.base import AncestorMask
from eagle.nn.kv_cache import RowCache
from eagle.nn.target import CachedLM


class CausalLMDrafter:
    """`Drafter` over a `CachedLM`: grown nodes are scored as a partial tree in the LM's scratch area."""

    ahead = 0

    def __init__(self, model, target_vocab_size: int):
        self.lm = CachedLM(model)
        self.device = self.lm.device
        # Families pad their embedding tables to different sizes: only ids that both sides know are proposed.
        self.columns = min(self.lm.vocab_size, target_vocab_size)
        self.ancestors = AncestorMask(0, 0, self.device)
        self.support: Tensor | None = None
        if self.columns < target_vocab_size:
            self.support = torch.arange(self.columns, device=self.device)

    @property
    def cache(self) -> RowCache:
        return self.lm.cache

    def fork(self) -> "CausalLMDrafter":
        other = copy.copy(self)
        other.lm, other.ancestors = self.lm.fork(), AncestorMask(0, 0, self.device)
        return other

    def refresh(self) -> None:
        self.lm.refresh()

    def reserve(self, rows: int, nodes: int, capacity: int, slack: int) -> None:
        self.cache.reserve(rows, nodes, capacity, slack)
        room = self.cache.store_shape
        if self.ancestors.mask.shape != (room.batch, room.scratch + 1, room.scratch):
            self.ancestors = AncestorMask(room.batch, room.scratch, self.device)
        self.cache.scratch = room.scratch  # the mask's columns are the whole area

    def use(self, count: int) -> None:
        self.cache.use(count)

    def state(self) -> list[Tensor]:
        return [*self.cache.state(), self.ancestors.mask, self.ancestors.depths]

    def read_prompt(self, row: int, prompt: list[int], held: int, aux_states: Tensor | None = None) -> None:  # noqa: ARG002
        last = self.lm.vocab_size - 1
        self.lm.read_prompt(row, [min(token, last) for token in prompt], held)
        self.cache.ids[row] = list(prompt)

    def read(self, tokens: Tensor, counts: Tensor, aux_states: Tensor | None = None) -> Tensor:  # noqa: ARG002  a head's
        self.ancestors.clear()
        return self._proposed(self.lm.extend(self._known(tokens), counts.to(self.device)).logits[:, 0])

    def rewind(self) -> None:
        self.ancestors.clear()

    def set_held(self, read: list[int]) -> None:
        self.cache.set_held(read)

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        first = self.ancestors.filled
        mask, depths = self.ancestors.add(parents)
        # The root is committed, so a node of depth d lies d - 1 positions past the committed length.
        return self._proposed(self.lm.score(self._known(tokens), depths - 1, mask, start=first).logits)

    def _proposed(self, logits: Tensor) -> Tensor:
        """Of an LM spread over devices they come from its last one."""
        return logits[..., : self.columns].to(self.device)

    def _known(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.device).clamp(max=self.lm.vocab_size - 1)


def check_same_tokenizer(target: Any, draft: Any) -> None:
    """ValueError when a draft model's tokenizer gives other ids than the target's."""
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours != theirs:
        differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[1])[:3]
        raise ValueError(
            f"draft and target tokenizers differ ({len(theirs)} and {len(ours)} tokens; for example {differing}): "
            "use a draft model of the same family"
        )


def check_models_agree(target: Any, draft: Any, tokenizer: Any) -> None:
    """ValueError where a model lacks tokens of the tokenizer, or the two models end answers with different tokens.

    Embedding tables may be padded to different sizes; ids that only one of the models has are never proposed.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    for name, model in (("target", target), ("draft model", draft)):
        size = model.get_input_embeddings().weight.shape[0]
        if size <= last:
            raise ValueError(
                f"the {name} has embeddings for {size} tokens and the tokenizer has the id {last}: expected at least "
                f"{last + 1}; these weights belong to another tokenizer"
            )
    ours, theirs = _ends(target), _ends(draft)
    if ours and theirs and not ours & theirs:
        raise ValueError(
            f"the target ends an answer with eos_token_id {sorted(ours)}, the draft model with {sorted(theirs)}: "
            "expected a token in common; use a draft model that was tuned as the target was, or correct its "
            "generation_config.json"
        )


def _ends(model: Any) -> set[int]:
    """The end-of-answer tokens of a model's generation_config.json."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if given is None else {given} if isinstance(given, int) else set(given)
