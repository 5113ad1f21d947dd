"""Attention windows in buckets: few shapes over a long generation, and nothing beyond a row's length is seen."""

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.nn import kv_cache as buckets
from eagle.nn.target import CachedLM
from tests.eagle.tiny import tiny_head, tiny_target

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_bucket_holds_the_length_and_little_more(device):
    smallest = buckets.SMALLEST[device.type]
    windows = [buckets.bucket(length, device) for length in range(20_000)]
    assert windows == sorted(windows)
    for length, window in enumerate(windows):
        assert length <= window < length + max(smallest + 1, length / 8 + 1)
    assert len({window for window in windows if window > 16 * smallest}) <= 8 * 6  # eight for each doubling


def scored(lm: CachedLM, scratch: int, garbage: float, prompts: torch.Tensor, counts: torch.Tensor):
    """Logits of a chain of three nodes after the prompts; unwritten slots hold `garbage`."""
    lm.reserve(batch=2, scratch=scratch, capacity=100, slack=8)
    for store in lm.buffer.stores:
        store.fill_(garbage)
    lm.prefill(prompts, counts)
    sees = torch.ones(3, 3, dtype=torch.bool).tril()
    ancestors = torch.nn.functional.pad(sees, (0, scratch - 3)).expand(2, -1, -1)
    depths = torch.arange(3).expand(2, -1)
    return lm.score(torch.tensor([[5, 6, 7], [8, 9, 10]]), depths, ancestors).logits


@torch.no_grad()
def test_what_lies_beyond_a_rows_length_changes_nothing():
    prompts, counts = torch.tensor([[3, 1, 4, 1, 9], [2, 6, 0, 0, 0]]), torch.tensor([5, 2])
    lm = CachedLM(tiny_target())
    clean, dirty = (scored(lm, 5, garbage, prompts, counts) for garbage in (0.0, 50.0))
    assert lm.window() == 64 and torch.equal(clean, dirty)


@torch.no_grad()
def test_a_smaller_tree_in_the_same_cache_scores_the_same_and_sees_no_spare_slot():
    prompts, counts = torch.tensor([[3, 1, 4, 1, 9], [2, 6, 0, 0, 0]]), torch.tensor([5, 2])
    fresh, used = CachedLM(tiny_target()), CachedLM(tiny_target())
    used.reserve(batch=2, scratch=20, capacity=100, slack=8)
    before = used.buffer
    expected, found = (scored(lm, 3, 0.0, prompts, counts) for lm in (fresh, used))
    assert torch.equal(expected, found) and used.buffer is before
    assert used.buffer.shape.scratch + used.window() - used._first == 3 + 64


def test_a_generation_sees_few_windows(monkeypatch):
    monkeypatch.setitem(buckets.SMALLEST, "cpu", 16)
    target = tiny_target(max_position_embeddings=256)
    engine, windows = EagleModel.from_head(target, tiny_head(target)), set()
    score = engine.target.score

    def spy(*args):
        windows.add(engine.target.window())
        return score(*args)

    monkeypatch.setattr(engine.target, "score", spy)
    engine.generate(torch.tensor([[7, 3, 22]]), 120, nodes=8, depth=3, generator=torch.Generator().manual_seed(0))
    assert windows == set(range(16, 136, 16))
