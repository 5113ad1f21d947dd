"""The target's features and laws at training positions, computed as they are needed.

Shapes: B batch, n tokens, F target hidden, M predicted positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle.train.data.conversations import Batch
from eagle.train.objective.loss import TargetLaw, target_law


class Features(NamedTuple):
    taps: Tensor  # [B, n, 3F]  inputs of the tapped layers
    last: Tensor  # [B, n, F]   after the final norm: what the target's lm_head reads


class OnlineFeatures:
    """Runs the frozen target on every batch. Taps are taken by hooks, before each tapped layer."""

    def __init__(self, target, taps: tuple[int, ...]):
        self.target = target.eval().requires_grad_(False)
        self.taps = taps
        self._seen: dict[int, Tensor] = {}
        for tap in taps:
            target.model.layers[tap].register_forward_pre_hook(self._keep(tap), with_kwargs=True)

    def _keep(self, tap: int):
        def hook(module, args, kwargs):
            self._seen[tap] = args[0] if args else kwargs["hidden_states"]

        return hook

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Features:
        out = self.target.model(input_ids=batch.tokens, use_cache=False)  # right padding: causal attention suffices
        last = out.last_hidden_state
        return Features(torch.cat([self._seen[tap].to(last.device) for tap in self.taps], dim=-1), last)

    @torch.no_grad()
    def law(self, last: Tensor, predicted: Tensor, support: Tensor | None) -> TargetLaw:
        """The target's laws at the M true entries of `predicted` Bool[B, n]."""
        return target_law(self.target.get_output_embeddings()(last[predicted]), support)
