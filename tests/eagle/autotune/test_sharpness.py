"""The power of q under which a head is right as often as it says."""

import pytest
import torch

from eagle import EagleModel, SamplingParams
from eagle.autotune.calibration import Overlap
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.autotune.sharpness import POWERS, compare, measure_overlaps, sharpness_of
from eagle.trees import Draft, TreeSettings
from tests.eagle.tiny import tiny_head, tiny_target

PROMPTS = [[3, 1, 4], [1, 5, 9, 2]]


def loss_of(p, logits, temperature):
    found = compare(p, logits, None, temperature)
    return dict(zip(POWERS, (loss for _, loss in found)))


@pytest.mark.parametrize("power", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_loss_is_least_where_q_is_p(power, temperature):
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(1))
    losses = loss_of((logits * power / temperature).softmax(-1), logits, temperature)
    assert min(losses, key=losses.get) == power


def test_a_head_that_is_right_as_often_as_it_says():
    """p is one certain token, drawn from q to the power .6: one token says nothing, the mean of 2,000 does.

    The losses at .5 and .7 lie 3.6 standard errors above (mean of six other seeds), so one seed in 3,000 would fail.
    """
    generator = torch.Generator().manual_seed(2)
    total = dict.fromkeys(POWERS, 0.0)
    for _ in range(2000):
        logits = 3 * torch.randn(30, generator=generator)
        token = torch.multinomial((0.6 * logits).softmax(-1), 1, generator=generator)
        p = torch.zeros(30).scatter(0, token, 1.0)
        for power, loss in loss_of(p, logits, 1.0).items():
            total[power] += loss
    assert min(total, key=total.get) == 0.6


def test_the_overlap_is_what_one_sampled_token_accepts(monkeypatch):
    """Averaged over the token, E[accepted] of a path of one is sum min(p, q): every token is drawn once."""
    target = tiny_target()
    model = EagleModel.from_head(target, tiny_head(target, draft_vocab=40))
    settings = TreeSettings(2, 1)
    probe = StateProbe(model, SamplingParams(1.0), TreeLimits.of([("chain", settings)]))
    probe.begin(PROMPTS[0], 20, torch.Generator().manual_seed(0))
    found = 0.0
    for column, weight in enumerate(probe.draft_logits.softmax(-1).tolist()):
        monkeypatch.setattr(Draft, "sample", lambda _, probs, column=column: torch.full(probs.shape[:-1], column))
        drafted = probe.draft("chain", settings)
        found += weight * drafted.expected("hsd")
    compared = compare(drafted.target_probs[0], probe.draft_logits, probe.drafter.support, 1.0)
    assert dict(zip(POWERS, compared))[1.0][0] == pytest.approx(found, abs=1e-5)


def test_what_is_measured_of_a_tiny_pair():
    target = tiny_target()
    model = EagleModel.from_head(target, tiny_head(target))
    found = measure_overlaps(model, PROMPTS, 0.8, tokens=5, seed=1)
    assert [one.power for one in found] == list(POWERS) and all(0 < one.overlap <= 1 for one in found)
    assert measure_overlaps(model, PROMPTS, 0.8, tokens=5, seed=1) == found
    assert measure_overlaps(model, PROMPTS, 0.0, tokens=5) == ()
    assert measure_overlaps(model, [[1] * 128], 0.8, tokens=5) == ()


def test_two_thirds_of_the_way_from_one():
    losses = [Overlap(power, 0.5, abs(power - 0.7)) for power in POWERS]
    assert sharpness_of(losses) == 0.8
    assert sharpness_of(()) == TreeSettings().sharpness
