"""Optimizers and the learning-rate schedule.

`muon`: the head's hidden matrices by Muon, norms and lm_head by AdamW at the same rate (Muon's update is scaled to
match AdamW's). `adamw`: everything by AdamW.
"""

import torch
from torch import nn
from torch.optim import Optimizer

BETAS = (0.9, 0.95)


def build_optimizers(head: nn.Module, name: str, lr: float, weight_decay: float) -> list[Optimizer]:
    named = [(key, w) for key, w in head.named_parameters() if w.requires_grad]
    hidden = [w for key, w in named if w.ndim == 2 and ("midlayer" in key or key.endswith("fc.weight"))]
    if name == "adamw":
        hidden = []
    held = {id(w) for w in hidden}
    rest = [w for _, w in named if id(w) not in held]
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=BETAS, weight_decay=weight_decay)]
    if hidden:
        optimizers.append(torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def rate(progress: float, step: int, warmup: int, decay: float) -> float:
    """Learning-rate factor: linear warm-up in steps, constant, then linear to zero over the last `decay` share."""
    falling = max(0.0, 1 - progress) / decay if decay > 0 else 1.0
    return min(1.0, (step + 1) / max(1, warmup), falling)


def risen(progress: float, full: float, warmup: float) -> float:
    """A weight that rises linearly from 0 to `full` over the first `warmup` share of the run."""
    return full * min(1.0, progress / warmup) if warmup > 0 else full


def set_rate(optimizers: list[Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
