"""Draws without replacement: the law of the ordered columns, zeros last."""

from itertools import permutations

import pytest
import torch

import hsd


def test_the_law_of_ordered_draws_is_that_of_drawing_one_after_the_other() -> None:
    """A fixed seed; every frequency of 400,000 draws within 5 standard errors of its probability."""
    p, count = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 400_000
    uniforms = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = hsd.draw_distinct(p.expand(count, 4), uniforms)
    codes = (drawn * torch.tensor([16, 4, 1])).sum(1).bincount(minlength=64)
    assert codes.sum() == count
    for a, b, c in permutations(range(4), 3):
        wanted = float(p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b]))
        found = codes[16 * a + 4 * b + c].item() / count
        assert abs(found - wanted) < 5 * (wanted * (1 - wanted) / count) ** 0.5
        codes[16 * a + 4 * b + c] = 0
    assert codes.sum() == 0  # no column twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_probability_zero_come_last(dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 1e-38, 0.0, 1 - 1e-38, 0.0], dtype=dtype).expand(2000, 5)
    uniforms = torch.rand(2000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = hsd.draw_distinct(p, uniforms)
    assert (drawn[:, 0] == 3).all() and (drawn[:, 1] == 1).all()
    assert torch.equal(drawn.sort(1).values, torch.arange(5).expand(2000, 5))
