"""The rule of the code released with the HSD paper, on one path. LOSSY: shows what it does, never a default.

As block verification (hsd/verifiers/block.py; the same p_i, S_i and residuals before the last token), except that
the full draft is accepted by its joint ratio, in which no prefix was capped:

    w_K = min(1, prod over i <= K of P_{i-1}(x_i) / Q_{i-1}(x_i))         where losslessness needs  w_K = p_K

Where a prefix is more probable under the target than under the draft (joint ratio above 1), its surplus counts at the
end, so full drafts are emitted too often: p_K = joint / max(1, largest prefix ratio) is smaller. The emitted
distribution is off by a few hundredths in total variation on random toy models (`python -m hsd.audit` prints it), and
E[accepted] can exceed the optimum over lossless verifiers.

What is modelled is the decision rule, with prefix ratios capped as the paper defines them (a running maximum);
other versions of that code cap the joint ratio of each prefix at 1 instead.
"""

from __future__ import annotations

import torch

from hsd.outcome import StopDistribution
from hsd.verifiers.block import capped_products, path_distribution, path_excess, path_heads, token_ratios
from hsd.verifiers.inputs import VerifierInput


def published(inputs: VerifierInput) -> StopDistribution:
    """Distribution of the stopping node and of the bonus token under the released rule. Lossy; one path only."""
    capped = capped_products(inputs)
    joint = token_ratios(inputs).log().sum(1, keepdim=True).exp().clamp_(max=1)
    excess = path_excess(inputs, capped)
    return path_distribution(inputs, path_heads(torch.cat((capped[:, :-1], joint), 1), excess), excess)
