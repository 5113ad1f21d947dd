"""Several prompts answered at once by this project's engine."""

from typing import Any

import torch

from eval.run.methods import Decoding, Method, engine_rows


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids Int64[B, L] padded with 0 on the right, and their attention mask Int64[B, L]."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def answer_batch(engine: Any, method: Method, rows: list[list[int]], decoding: Decoding, seed: int) -> list[Any]:
    """The engine's record of each row of a batch, in order; every row draws from one generator, seeded here."""
    ids, mask = padded(rows)
    generator = torch.Generator(device=engine.device).manual_seed(seed)
    return engine_rows(engine, method, ids, decoding, generator, mask)
