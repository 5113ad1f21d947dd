"""Trees scored in one forward have the distributions that they have alone."""

import pytest
import torch

from eagle import EagleModel, SamplingParams
from eagle.autotune.merged import merge
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.trees import TreeSettings
from tests.eagle.tiny import tiny_head, tiny_target

PLANS = [(kind, TreeSettings(nodes, 4)) for kind in ("topk", "hybrid", "rsd", "chain") for nodes in (5, 9)]


@pytest.fixture(scope="module")
def model():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=40))


def probe_at_a_state(model, together):
    probe = StateProbe(model, SamplingParams(1.0), TreeLimits.of(PLANS), together)
    probe.begin([3, 1, 4, 1, 5], 20, torch.Generator().manual_seed(0))
    probe.advance()
    return probe


def paths(tokens, parents):
    """Every node's tokens from the root to it."""
    found = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@pytest.mark.parametrize("together", [9, 20, 256])
def test_scored_together_as_alone(model, together):
    probe = probe_at_a_state(model, together)
    trees = [probe.grow(*plan) for plan in PLANS]
    scored = list(probe.score(trees))
    assert [one.batch for one in scored] == trees
    for tree, one in zip(trees, scored, strict=True):
        (alone,) = probe.score([tree])
        assert torch.allclose(one.target_probs, alone.target_probs, atol=1e-6)


def test_a_path_is_scored_once(model):
    probe = probe_at_a_state(model, 256)
    trees = [probe.grow(*plan) for plan in PLANS]
    (merged,) = merge(trees, 256)
    of_union = paths(merged.tokens, merged.parents)
    assert len(set(of_union)) == len(of_union)
    assert [len(path) - 1 for path in of_union] == merged.depths
    for tree, places in zip(trees, merged.places, strict=True):
        assert [of_union[place] for place in places] == paths(tree.tokens[0].tolist(), tree.parents[0].tolist())
    assert merged.ancestors().sum(1).tolist() == [depth + 1 for depth in merged.depths]


def test_unions_keep_to_their_room(model):
    probe = probe_at_a_state(model, 20)
    found = list(merge([probe.grow(*plan) for plan in PLANS], 20))
    assert len(found) > 1 and all(len(merged.tokens) <= 20 for merged in found)
    assert sum(len(merged.places) for merged in found) == len(PLANS)
