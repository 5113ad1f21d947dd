"""Block verification of one path (Sun et al., arXiv 2403.10444), written from that paper's own recursion.

For a draft x_1 .. x_K with target distributions P_i and draft distributions Q_i of token i + 1 given i drafted
tokens, p_0 = 1:

    p_i = min(p_{i-1} P_{i-1}(x_i) / Q_{i-1}(x_i), 1)
    h_i = S_i / (S_i + 1 - p_i),   S_i = sum_x max(p_i P_i(x) - Q_i(x), 0)    for i < K;      h_K = p_K
    accept the longest x_1 .. x_i whose own coin of bias h_i comes up heads; the coins are independent
    emit y ~ norm(max(p_i P_i - Q_i, 0)) for i < K,  y ~ P_K for i = K

On a path this equals HSD (docs/verifiers.md, "HSD is block verification on a path"); the tests compare the two at
1e-12, and neither calls the other. Shape letters: B batch, K path length, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.outcome import StopDistribution
from hsd.verifiers.bonus import normalized, target_row
from hsd.verifiers.inputs import VerifierInput, take_rows


def block(inputs: VerifierInput) -> StopDistribution:
    """Distribution of the stopping node and of the bonus token under block verification. Lossless; one path only."""
    capped = capped_products(inputs)
    excess = path_excess(inputs, capped)
    heads = path_heads(capped, excess)
    return path_distribution(inputs, heads, excess)


def capped_products(inputs: VerifierInput) -> Tensor:
    """p_i Float[B, K+1], the running product of token ratios, capped at 1 after every factor."""
    ratios = token_ratios(inputs).unbind(1)
    products = [torch.ones_like(ratios[0])]
    for ratio in ratios[1:]:
        products.append((products[-1] * ratio).clamp_(max=1))
    return torch.stack(products, 1)


def token_ratios(inputs: VerifierInput) -> Tensor:
    """P_{i-1}(x_i) / Q_{i-1}(x_i) Float[B, K+1]; 1 at the root."""
    limits = torch.finfo(inputs.d_token.dtype)
    ratio = (inputs.p_token / inputs.d_token.clamp(min=limits.tiny)).clamp_(max=limits.max)
    return torch.where(inputs.batch.parents < 0, 1, ratio)


def path_excess(inputs: VerifierInput, products: Tensor) -> Tensor:
    """max(p_i P_i - Q_i, 0) Float[B, K, V] for i < K."""
    batch = inputs.batch
    measure = products[:, :-1, None] * inputs.target[:, :-1]
    sampled = inputs.sampled[:, 1:, None].to(measure.dtype)
    if inputs.layout.max_draws:
        share = take_rows(inputs.distributions.flatten(0, 1), inputs.proposal_row[:, 1:])
        columns = slice(None) if batch.support is None else batch.support
        measure[:, :, columns] = measure[:, :, columns] - share * sampled
    return measure.scatter_add(2, batch.tokens[:, 1:, None], sampled - 1).clamp_(min=0)


def path_heads(products: Tensor, excess: Tensor) -> Tensor:
    """h_i Float[B, K+1]."""
    total = excess.sum(-1)
    odds = (total + (1 - products[:, :-1])).clamp_(min=torch.finfo(total.dtype).tiny)  # never below total
    heads = torch.cat((total / odds, products[:, -1:].clamp(max=1)), 1)
    heads[:, 0] = 1
    return heads


def path_distribution(inputs: VerifierInput, heads: Tensor, excess: Tensor) -> StopDistribution:
    """stop(i) = h_i * prod over j > i of (1 - h_j), and the residuals."""
    tails = torch.cat(((1 - heads).flip(1).cumprod(1).flip(1)[:, 1:], torch.ones_like(heads[:, :1])), 1)
    rows = torch.cat((excess, inputs.target[:, -1:]), 1)

    def residual(nodes: Tensor) -> Tensor:
        row = rows.gather(1, nodes[:, None, None].expand(-1, 1, rows.shape[2]))[:, 0]
        return normalized(row, target_row(inputs, nodes))

    return StopDistribution(heads * tails, residual)
