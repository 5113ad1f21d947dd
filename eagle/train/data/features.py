"""The target's features at training positions, and its distributions there, computed as they are needed.

Shapes: B batch, n tokens, F target hidden, M predicted positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from eagle.nn.target import layer_inputs, states_to_keep
from eagle.train.data.conversations import Batch
from eagle.train.objective.loss import TargetProbs, Totals, restricted_probs, target_probs

TOTALS_ROWS = 512  # positions whose logits over the full vocabulary exist at once


class Features(NamedTuple):
    """Hidden states of the target, in its dtype."""

    taps: Tensor  # [B, n, 3F]  inputs of the tapped layers
    last: Tensor  # [B, n, F]   after the final norm: the input of the target's lm_head
    totals: Totals | None = None  # [B, n] each, true where a token is predicted; None: to be computed from `last`


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
    def probs(self, features: Features, predicted: Tensor, support: Tensor | None) -> TargetProbs:
        """Target probs at the M true entries of `predicted` Bool[B, n].

        With the totals known, only the logits of the draft vocabulary `support` are computed.
        """
        last, totals = features.last[predicted], features.totals
        if support is None or totals is None:
            return target_probs(self._logits(last), support)
        head = self.target.get_output_embeddings()
        bias = None if head.bias is None else head.bias[support]
        inside = linear(last.to(head.weight.dtype), head.weight[support], bias)
        return restricted_probs(inside, Totals(*(total[predicted] for total in totals)), support)

    @torch.no_grad()
    def totals(self, last: Tensor, predicted: Tensor) -> Totals:
        """Of `last` [B, n, F] at the true entries of `predicted` Bool[B, n], 0 elsewhere: [B, n] each."""
        found = [Totals.of(self._logits(part)) for part in last[predicted].split(TOTALS_ROWS)]
        log_sum, likeliest = last.new_zeros(last.shape[:2], dtype=torch.float32), predicted.long()
        log_sum[predicted] = torch.cat([one.log_sum for one in found])
        likeliest[predicted] = torch.cat([one.likeliest for one in found])
        return Totals(log_sum, likeliest)

    def _logits(self, last: Tensor) -> Tensor:
        head = self.target.get_output_embeddings()
        return head(last.to(head.weight.dtype))
