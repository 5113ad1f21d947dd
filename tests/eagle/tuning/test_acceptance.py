"""What a tree accepts: the mean's arithmetic, a sampled path's beginnings, and a table of a tiny pair."""

import math

import pytest
import torch

from eagle import EagleModel, SamplingParams
from eagle.trees import TreeSettings
from eagle.tuning import acceptance
from eagle.tuning.acceptance import measure_table, overlap, path_expected
from eagle.tuning.candidates import candidates_at
from eagle.tuning.probe import StateProbe, TreeLimits
from tests.eagle.tiny import tiny_head, tiny_target

PROMPTS = [[3, 1, 4], [1, 5, 9, 2]]


@pytest.fixture(scope="module", params=[60, 40], ids=["same vocabulary", "smaller draft vocabulary"])
def model(request):
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=request.param))


@pytest.fixture
def probe(model):
    settings = TreeSettings(8, 7)
    probe = StateProbe(model, SamplingParams(1.0), TreeLimits.of([("chain", settings)]))
    probe.begin(PROMPTS[0], 20, torch.Generator().manual_seed(0))
    return probe


def test_a_mean_of_states_with_the_error_of_prompts():
    mean, error = acceptance.mean_and_error([[1.0, 2.0], [4.0]])
    assert mean == pytest.approx(7 / 3, abs=1e-4)
    assert error == pytest.approx(math.sqrt(2 * ((3 - 14 / 3) ** 2 + (4 - 7 / 3) ** 2)) / 3, abs=1e-4)
    assert acceptance.mean_and_error([[1.0, 2.0]]) == (1.5, 0.0)


def test_the_beginning_of_a_path_is_a_path(probe):
    """Of a path of 7 the first 3 tokens accept what a path of 3, drawn alike, accepts."""
    drawn = iter(range(100))
    draw = lambda probs: torch.full(probs.shape[:-1], next(drawn) % probs.shape[-1])
    long = probe.draft("chain", TreeSettings(8, 7), draw=draw)
    drawn = iter(range(100))
    short = probe.draft("chain", TreeSettings(4, 3), draw=draw)
    assert path_expected(long, 4, "hsd") == pytest.approx(short.expected("hsd"), abs=1e-5)
    assert path_expected(long, 8, "hsd") == pytest.approx(long.expected("hsd"), abs=1e-6)


def test_the_overlap_is_what_one_sampled_token_accepts(probe):
    """Averaged over the token, E[accepted] of a path of one is sum min(p, q): every token is drawn once."""
    q = probe.root_probs
    found = 0.0
    for column, weight in enumerate(q.tolist()):
        draw = lambda probs, column=column: torch.full(probs.shape[:-1], column)
        drafted = probe.draft("chain", TreeSettings(2, 1), draw=draw)
        found += weight * drafted.expected("hsd")
    assert overlap(drafted.target_probs[0], probe, 1.0) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_table_of_a_tiny_pair(model, temperature):
    table = measure_table(model, PROMPTS, temperature, states=4, seed=1)
    assert (table.temperature, table.states) == (temperature, 4)
    assert [row.candidate for row in table.trees] == candidates_at(temperature)
    assert all(0 <= row.expected <= row.depth for row in table.trees)
    assert len(table.overlaps) == (0 if temperature == 0 else len(acceptance.FACTORS))
    assert all(0 < one.overlap <= 1 for one in table.overlaps)
    assert measure_table(model, PROMPTS, temperature, states=4, seed=1) == table


def test_answers_without_a_state_are_refused(model):
    with pytest.raises(ValueError, match="no state was reached on 1 prompts"):
        measure_table(model, [[1] * 127], 1.0, states=4)
