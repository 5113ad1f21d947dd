"""The rule of the code released with the HSD paper, on one path. LOSSY: shows what it does, never a default.

As block verification (hsd/verifiers/block.py; the same p_i, S_i and residual laws before the last token), except that
the full draft is accepted by its joint ratio, in which no prefix was capped:

    w_K = min(1, prod over i <= K of P_{i-1}(x_i) / Q_{i-1}(x_i))         where losslessness needs  w_K = p_K

A prefix that the target likes more than the draft does (joint ratio above 1) carries its surplus to the
end, so full drafts are emitted too often: p_K = joint / max(1, largest prefix ratio) is smaller. The
emitted law is off by a few hundredths in total variation on random toy models (`python -m hsd.audit` prints
it), and E[accepted] can exceed the optimum over lossless verifiers.

What is modelled is the decision rule, with prefix ratios capped as the paper defines them (a running maximum);
other versions of that code cap the joint ratio of each prefix at 1 instead.
"""

from __future__ import annotations

import torch

from hsd.outcome import Law
from hsd.verifiers.balance import Problem
from hsd.verifiers.block import capped_products, path_excess, path_heads, path_law, token_ratios


def published(problem: Problem) -> Law:
    """Law of the stopping node and of the bonus token under the released rule. Lossy; one path only."""
    capped = capped_products(problem)
    joint = token_ratios(problem).log().sum().exp().clamp(max=1)
    excess = path_excess(problem, capped)
    return path_law(problem, path_heads(torch.cat((capped[:-1], joint[None])), excess), excess)
