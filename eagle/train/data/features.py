"""The target's features at training positions, and its distributions there, computed as they are needed.

Shapes: B batch, n tokens, F target hidden, M predicted positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle.modules.target import layer_inputs, states_to_keep
from eagle.train.data.conversations import Batch
from eagle.train.objective.loss import TargetProbs, target_probs


class Features(NamedTuple):
    """Hidden states of the target, in its dtype."""

    taps: Tensor  # [B, n, 3F]  inputs of the tapped layers
    last: Tensor  # [B, n, F]   after the final norm: the input of the target's lm_head


class OnlineFeatures:
    """Runs the frozen target on every batch."""

    def __init__(self, target, taps: tuple[int, ...]) -> None:
        """`taps` are the decoder layers whose inputs are kept."""
        self.target = target.eval().requires_grad_(False)
        self.taps = taps

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Features:
        """Features of every position; right padding needs no mask under causal attention."""
        keep = states_to_keep(self.taps)
        out = self.target.model(input_ids=batch.tokens, use_cache=False, output_hidden_states=keep)
        last = out.last_hidden_state
        layers = self.target.config.num_hidden_layers
        return Features(layer_inputs(out.hidden_states, self.taps, layers, last), last)

    @torch.no_grad()
    def probs(self, last: Tensor, predicted: Tensor, support: Tensor | None) -> TargetProbs:
        """Target probs at the M true entries of `predicted` Bool[B, n]; `last` as in `Features`."""
        head = self.target.get_output_embeddings()
        return target_probs(head(last[predicted].to(head.weight.dtype)), support)
