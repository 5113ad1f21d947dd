"""What the hardware allows, measured in this process: bytes that must move, and arithmetic that must be done."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from eagle import EagleModel
from eagle.drafters import Eagle3Drafter
from eval.run.methods import seconds_of


class Rates(NamedTuple):
    """Measured best rates: bytes read per second while copying, FLOPs per second in a matrix product."""

    bytes_per_second: float
    flops_per_second: float


class Floor(NamedTuple):
    """Least seconds one step can take: reading its weights once per pass, and its multiplications."""

    bytes_seconds: float
    flops_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.bytes_seconds, self.flops_seconds)


def fastest(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Seconds of the fastest of several runs: a floor is the best case."""
    return min(seconds_of(work, device) for _ in range(repeats))


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy a large buffer, multiply two large matrices; on a CPU in float32 too, for one that emulates `dtype`."""
    size = 2**28 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    copying = fastest(lambda: goal.copy_(source), device)
    n = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(n, n, device=device)
    dtypes = {dtype} if device.type == "cuda" else {dtype, torch.float32}
    multiplying = min(fastest(partial(torch.matmul, one, one), device) for one in map(matrix.to, dtypes))
    return Rates(2 * size / copying, 2 * n**3 / multiplying)  # a copy reads and writes every byte


def parameter_count(module: torch.nn.Module, skip: torch.nn.Module | None = None) -> int:
    """Numbers in a module's parameters, without those of `skip`."""
    skipped = {id(p) for p in skip.parameters()} if skip is not None else set()
    return sum(p.numel() for p in module.parameters() if id(p) not in skipped)


def step_floor(model: EagleModel, rates: Rates, nodes: int, passes: int, width: int) -> Floor:
    """Floor of one step: one target pass over `nodes` rows and `passes` head passes over `width` rows.

    Embedding tables are looked up, not read; a tied table is read as the output layer. The KV cache is left out: at
    512 tokens it is under 1 % of the weights of the shapes here. Only EAGLE-3 heads count as drafters.
    """
    target = model.target.model
    tied = target.config.tie_word_embeddings
    of_target = parameter_count(target, None if tied else target.get_input_embeddings())
    drafter = model.drafter
    of_head = parameter_count(drafter.head) if passes and isinstance(drafter, Eagle3Drafter) else 0
    size = target.dtype.itemsize
    moved = size * (of_target + passes * of_head)
    flops = 2 * (nodes * of_target + passes * width * of_head)
    return Floor(moved / rates.bytes_per_second, flops / rates.flops_per_second)
