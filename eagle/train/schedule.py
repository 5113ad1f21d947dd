"""The optimizer (AdamW) and the learning-rate schedule of both trainings, the head's and the demo target's."""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

BETAS = (0.9, 0.95)


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> AdamW:
    """AdamW over the parameters that require gradients."""
    trained = [weight for weight in parameters if weight.requires_grad]
    return AdamW(trained, lr=lr, betas=BETAS, weight_decay=weight_decay, fused=True)


def learning_rate_factor(share: float, step: int, warmup: int, decay: float) -> float:
    """Linear warm-up over `warmup` steps, constant, then linear to zero over the last `decay` share of the run.

    `share` is the part of the run that is done, 0 .. 1.
    """
    falling = max(0.0, 1 - share) / decay if decay > 0 else 1.0
    return min(1.0, (step + 1) / max(1, warmup), falling)


def linear_ramp(share: float, full: float, warmup: float) -> float:
    """A weight that rises linearly from 0 to `full` over the first `warmup` share of the run."""
    return full * min(1.0, share / warmup) if warmup > 0 else full


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
