"""Attention windows in buckets: few shapes over a long generation, and nothing beyond a row's length is seen."""

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.nn import kv_cache as buckets
from eagle.nn.target import CachedLM
from tests.eagle.tiny import tiny_head, tiny_target, with_prompts

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_bucket_holds_the_length_and_little_more(device):
    smallest = buckets.SMALLEST[device.type]
    windows = [buckets.bucket(length, device) for length in range(20_000)]
    assert windows == sorted(windows)
    for length, window in enumerate(windows):
        assert length <= window < length + max(smallest + 1, length / 8 + 1)
    assert len({window for window in windows if window > 16 * smallest}) <= 8 * 6  # eight for each doubling


PROMPTS = [[3, 1, 4, 1, 9], [2, 6]]


def scored(lm: CachedLM, scratch: int, garbage: float):
    """Logits of a chain of three nodes after the prompts; unwritten slots hold `garbage`."""
    lm.cache.reserve(2, scratch, 100, 8)
    for store in lm.cache.store.stores:
        store.fill_(garbage)
    with_prompts(lm, PROMPTS, scratch, 100)
    sees = torch.ones(3, 3, dtype=torch.bool).tril()
    ancestors = torch.nn.functional.pad(sees, (0, scratch - 3)).expand(2, -1, -1)
    depths = torch.arange(3).expand(2, -1)
    return lm.score(torch.tensor([[5, 6, 7], [8, 9, 10]]), depths, ancestors).logits


@torch.no_grad()
def test_what_lies_beyond_a_rows_length_changes_nothing():
    lm = CachedLM(tiny_target())
    clean, dirty = (scored(lm, 5, garbage) for garbage in (0.0, 50.0))
    assert lm.cache.window() == 64 and torch.equal(clean, dirty)


@torch.no_grad()
def test_a_smaller_tree_in_the_same_cache_scores_the_same_and_sees_no_spare_slot():
    fresh, used = CachedLM(tiny_target()), CachedLM(tiny_target())
    used.cache.reserve(2, 20, 100, 8)
    before = used.cache.store
    expected, found = (scored(lm, 3, 0.0) for lm in (fresh, used))
    assert torch.equal(expected, found) and used.cache.store is before
    assert used.cache.buffer.shape.scratch + used.cache.window() - used.cache.first_node == 3 + 64


def test_a_generation_sees_few_windows(monkeypatch):
    monkeypatch.setitem(buckets.SMALLEST, "cpu", 16)
    target = tiny_target(max_position_embeddings=256)
    engine, windows = EagleModel.from_head(target, tiny_head(target)), set()
    score = CachedLM.score

    def spy(lm, *args):
        windows.add(lm.cache.window())
        return score(lm, *args)

    monkeypatch.setattr(CachedLM, "score", spy)
    engine.generate(torch.tensor([[7, 3, 22]]), 120, nodes=8, depth=3, generator=torch.Generator().manual_seed(0))
    assert windows == set(range(16, 136, 16))
