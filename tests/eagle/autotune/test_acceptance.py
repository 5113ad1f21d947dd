"""What a tree accepts: the mean's arithmetic, a sampled path's beginnings, and a table of a tiny pair."""

import math

import pytest
import torch

from eagle import EagleModel, SamplingParams
from eagle.autotune import acceptance
from eagle.autotune.acceptance import Measured, best_beta, measure, path_expected, tables_of
from eagle.autotune.candidates import candidates_at
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.autotune.sharpness import POWERS
from eagle.trees import Draft, TreeSettings
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


def test_the_beginning_of_a_path_is_a_path(probe, monkeypatch):
    """Of a path of 7 the first 3 tokens accept what a path of 3, drawn alike, accepts."""

    def drafted(settings):
        drawn = iter(range(100))
        draw = lambda _, probs: torch.full(probs.shape[:-1], next(drawn) % probs.shape[-1])
        monkeypatch.setattr(Draft, "sample", draw)
        return probe.draft("chain", settings)

    long, short = drafted(TreeSettings(8, 7)), drafted(TreeSettings(4, 3))
    assert path_expected(long, 4, "hsd") == pytest.approx(short.expected("hsd"), abs=1e-5)
    assert path_expected(long, 8, "hsd") == pytest.approx(long.expected("hsd"), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_table_of_a_tiny_pair(model, temperature):
    measured = measure(model, PROMPTS, temperature, states=2, seed=1)
    (table,) = tables_of([measured], ["ragged"])
    assert (table.temperature, table.states) == (temperature, 2)
    assert [row.candidate for row in table.trees] == candidates_at(temperature)
    assert all(0 <= row.expected <= row.depth for row in table.trees)
    assert len(table.overlaps) == (0 if temperature == 0 else len(POWERS))
    assert all(0 < one.overlap <= 1 for one in table.overlaps)
    assert measure(model, PROMPTS, temperature, states=2, seed=1) == measured


def test_at_a_state_all_trees_draw_with_the_same_seeds(model, monkeypatch):
    grow, seeds = StateProbe.grow, []

    def recorded(probe, tree, settings, generator):
        seeds.append((len(probe.row.ids), tree, generator.initial_seed()))
        return grow(probe, tree, settings, generator=generator)

    monkeypatch.setattr(StateProbe, "grow", recorded)
    measure(model, PROMPTS[:1], 1.0, states=3)
    states = {state for state, *_ in seeds}
    for state in states:
        used = [{seed for at, kind, seed in seeds if (at, kind) == (state, tree)} for tree in ("hybrid", "rsd", "topk")]
        assert used[0] == used[1] > used[2] and len(used[0]) == acceptance.DRAWS
    assert len({seed for _, tree, seed in seeds if tree == "rsd"}) == acceptance.DRAWS * len(states) == 6


def test_few_states_lie_along_few_answers(model, monkeypatch):
    """Not at the first words of many: 8 states of 5 prompts are 4 along each of two answers."""
    begin, answered = StateProbe.begin, []

    def recorded(probe, prompt, tokens, *args, **kwargs):
        answered.append((prompt, tokens))
        return begin(probe, prompt, tokens, *args, **kwargs)

    monkeypatch.setattr(StateProbe, "begin", recorded)
    prompts = [[3 + index] for index in range(5)]
    assert measure(model, prompts, 0.0, states=8).states == 8
    assert answered == [([3], 4 * acceptance.STRIDE + 1), ([5], 4 * acceptance.STRIDE + 1)]
    assert acceptance.spread(prompts, 9) == prompts


def test_one_beta_serves_all_temperatures():
    """Each temperature counts alike, however much is accepted there."""

    def measured(temperature, values):
        found = {
            (one.tree, settings): (1.0, 0.0)
            for one in candidates_at(temperature)
            for settings in one.variants(1, ["equal"])
        }
        totals = {(one, settings): (values[settings.beta], 0.0) for one, settings in found if one == "hybrid"}
        return Measured(temperature, 1, {**found, **totals}, ())

    few, many = measured(1.0, {0.3: 0.1, 0.5: 0.13, 0.7: 0.1}), measured(0.5, {0.3: 3.1, 0.5: 3.0, 0.7: 3.0})
    assert best_beta([many], "equal") == 0.3
    tables = tables_of([few, many, measured(0.0, {})], ["equal"])
    assert [table.fit.beta for table in tables] == [0.5] * 3
    assert {row.expected for table in tables[:2] for row in table.trees if row.tree == "hybrid"} == {0.13, 3.0}
    assert best_beta([measured(0.0, {})], "equal") == TreeSettings().beta


def test_answers_without_a_state_are_refused(model):
    with pytest.raises(ValueError, match="no state was reached on 1 prompts"):
        measure(model, [[1] * 127], 1.0, states=4)
