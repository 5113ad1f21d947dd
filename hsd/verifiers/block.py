"""Block verification of one path (Sun et al., arXiv 2403.10444), written from that paper's own recursion.

For a draft x_1 .. x_K with target laws P_i and draft laws Q_i of token i + 1 given i drafted tokens, p_0 = 1:

    p_i = min(p_{i-1} P_{i-1}(x_i) / Q_{i-1}(x_i), 1)
    h_i = S_i / (S_i + 1 - p_i),   S_i = sum_x max(p_i P_i(x) - Q_i(x), 0)    for i < K;      h_K = p_K
    accept the longest x_1 .. x_i whose own coin of bias h_i comes up heads; the coins are independent
    emit y ~ norm(max(p_i P_i - Q_i, 0)) for i < K,  y ~ P_K for i = K

Why HSD equals it on a path. There p_i is HSD's weight w: both are the joint ratio with each prefix capped
at 1. A node of a path has one child, so HSD's excess is max(w p - d, 0), its Z is S_i, and its final weight
Z / (Z + 1 - w) is h_i; visiting the path from its leaf is taking the longest prefix with heads. The tests
compare the two at 1e-12; nothing here calls the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsd.outcome import Law
from hsd.verifiers.balance import Problem, normalised


def block(problem: Problem) -> Law:
    """Law of the stopping node and of the bonus token under block verification. Lossless; one path only."""
    capped = capped_products(problem)
    excess = path_excess(problem, capped)
    heads = path_heads(capped, excess)
    return path_law(problem, heads, excess)


def capped_products(problem: Problem) -> Tensor:
    """p_i Float[K+1], the running product of token ratios, capped at 1 after every factor."""
    ratios = token_ratios(problem).unbind()
    products = [torch.ones_like(ratios[0])]
    for ratio in ratios[1:]:
        products.append((products[-1] * ratio).clamp(max=1))
    return torch.stack(products)


def token_ratios(problem: Problem) -> Tensor:
    """P_{i-1}(x_i) / Q_{i-1}(x_i) Float[K+1]; 1 at the root."""
    limits = torch.finfo(problem.d_token.dtype)
    ratio = (problem.p_token / problem.d_token.clamp(min=limits.tiny)).clamp(max=limits.max)
    return torch.where(problem.tree.parents < 0, 1, ratio)


def path_excess(problem: Problem, products: Tensor) -> Tensor:
    """max(p_i P_i - Q_i, 0) Float[K, V] for i < K."""
    tree = problem.tree
    measure = products[:-1, None] * problem.target[:-1]
    drawn = problem.sampled[1:, None].to(measure.dtype)
    if problem.layout.max_draws:
        share = tree.proposals[problem.rows[1:]] * drawn
        columns = slice(None) if tree.support is None else tree.support
        measure[:, columns] = measure[:, columns] - share
    return measure.scatter_add(1, tree.tokens[1:, None], drawn - 1).clamp(min=0)


def path_heads(products: Tensor, excess: Tensor) -> Tensor:
    """h_i Float[K+1]."""
    total = excess.sum(-1)
    odds = (total + (1 - products[:-1])).clamp(min=torch.finfo(total.dtype).tiny)  # never below total
    heads = torch.cat((total / odds, products[-1:].clamp(max=1)))
    return heads.index_fill(0, torch.zeros(1, dtype=torch.int64, device=heads.device), 1)


def path_law(problem: Problem, heads: Tensor, excess: Tensor) -> Law:
    """stop(i) = h_i * prod over j > i of (1 - h_j), and the residual laws."""
    tails = torch.cat(((1 - heads).flip(0).cumprod(0).flip(0)[1:], torch.ones_like(heads[:1])))
    rows = torch.cat((excess, problem.target[-1:]))

    def residual(node: int | Tensor) -> Tensor:
        node = torch.as_tensor(node, device=rows.device).reshape(1)
        return normalised(rows.index_select(0, node)[0], problem.target.index_select(0, node)[0])

    return Law(heads * tails, residual)
