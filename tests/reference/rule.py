"""The scalar verifiers as rules of the audit."""

from __future__ import annotations

import torch
from torch import Tensor

from hsd import DraftTree
from hsd.audit.exact import Rule
from tests.reference import scalar


def by(name: str) -> Rule:
    """The verifier `name` of `scalar`: stop Float64[N], residuals Float64[N, V] (p itself where it cannot stop)."""

    def rule(tree: DraftTree, target: Tensor) -> tuple[Tensor, Tensor]:
        stop, residuals = scalar.exact_distribution(name, scalar.from_draft(tree, target))
        rows = [found if found else wanted for found, wanted in zip(residuals, target.tolist())]
        return torch.tensor(stop, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)

    return rule
