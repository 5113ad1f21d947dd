"""The cache argument is `cache` from transformers 5.24 and `past_key_values` before; it is passed by the right name."""

import functools
import warnings

import pytest

from eagle.nn.target import CachedLM, cache_keyword
from tests.eagle.tiny import FAMILIES, tiny_target, with_prompts


def old(input_ids=None, past_key_values=None, **kwargs):
    """A forward as it was."""


def new(input_ids=None, cache=None, **kwargs):
    """A forward as it is."""


@functools.wraps(new)
def renaming(*args, **kwargs):
    """The new one behind a decorator that still accepts the old name, as in 5.24."""


@pytest.mark.parametrize(("forward", "name"), [(old, "past_key_values"), (new, "cache"), (renaming, "cache")])
def test_by_signature(forward, name):
    assert cache_keyword(forward) == name


@pytest.mark.parametrize("old_name", [True, False])
def test_the_target_passes_its_cache_by_that_name(monkeypatch, old_name):
    target = tiny_target()
    seen, original = [], target.forward

    def forward_before(input_ids=None, past_key_values=None, **kwargs):
        seen.append("past_key_values")
        return original(input_ids=input_ids, **{cache_keyword(original): past_key_values}, **kwargs)

    def forward_after(input_ids=None, cache=None, **kwargs):
        seen.append("cache")
        return original(input_ids=input_ids, **{cache_keyword(original): cache}, **kwargs)

    monkeypatch.setattr(target, "forward", forward_before if old_name else forward_after)
    lm = with_prompts(CachedLM(target, decoder="stock"), [[1, 2, 3]], scratch=1)
    assert seen == ["past_key_values" if old_name else "cache"]
    assert lm.cache.store.stores[0].abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_warns(family):
    lm = CachedLM(tiny_target(family), decoder="stock")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_prompts(lm, [[1, 2, 3]], scratch=1)
