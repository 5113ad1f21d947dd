"""Step times are kept by machine and models, measured again where they are not readable; which trees are timed."""

import itertools
import json

import pytest

from eagle.autotune import step_cost
from eagle.autotune.candidates import PLAIN, Candidate
from eagle.autotune.step_cost import OutOfTime, StepCosts, Times, can_gain, is_near_best

TIMES = {PLAIN: 10.0, Candidate("hybrid", 16, 6): 25.0}
KEY = {"target": "aa", "drafter": "bb", "threads": 2}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The measurements that are asked for."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        step_cost,
        "measure",
        lambda model, batch, greedy, accepted, shown: calls.append((batch, greedy)) or Times(TIMES, 1.1),
    )
    return calls


def test_measured_once_and_kept_for_the_next_process(measured):
    first = StepCosts(KEY)
    assert first.known(1, False) is None
    assert first.measure(None, 1, False, {}) == first.known(1, False) == TIMES
    first.measure(None, 4, True, {})
    again = StepCosts(dict(reversed(KEY.items())))
    assert again.known(1, False) == again.known(4, True) == TIMES
    assert again.known(4, False) is None
    assert json.loads(first.path.read_text())["threads"] == 2


def test_another_machine_measures_for_itself(measured):
    StepCosts(KEY).measure(None, 1, False, {})
    assert StepCosts({**KEY, "threads": 1}).known(1, False) is None


def test_models_without_a_path_are_measured_in_memory(measured, tmp_path):
    costs = StepCosts(None)
    costs.measure(None, 1, False, {})
    assert costs.known(1, False) == TIMES
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2, "milliseconds": {"batch 1, sampling": [[1]]}}'])
def test_a_damaged_file_is_measured_again(measured, content):
    costs = StepCosts(KEY)
    costs.path.parent.mkdir(parents=True)
    costs.path.write_text(content)
    assert StepCosts(KEY).known(1, False) is None
    costs.measure(None, 1, False, {})
    assert StepCosts(KEY).known(1, False) == TIMES


def test_a_cache_that_cannot_be_written_is_a_warning(measured, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    costs = StepCosts(KEY)
    with pytest.warns(UserWarning, match="measured step times are not kept"):
        assert costs.measure(None, 1, False, {}) == TIMES


def test_a_tree_that_could_not_win_with_everything_accepted_is_not_timed():
    times = {PLAIN: 10.0, Candidate("topk", 4, 2): 31.0, Candidate("chain", 2, 1): 15.0}
    assert not can_gain(Candidate("topk", 4, 2), times, {})
    assert can_gain(Candidate("topk", 8, 4), times, {})  # up to 5 tokens in at least 31 ms
    assert can_gain(Candidate("hybrid", 4, 2), times, {})
    assert can_gain(Candidate("chain", 3, 2), times, {})
    assert can_gain(PLAIN, {}, {})


def test_what_a_tree_accepts_at_most_bounds_what_its_step_may_cost():
    times = {PLAIN: 10.0, Candidate("topk", 4, 2): 21.0}
    larger = Candidate("topk", 8, 4)
    assert can_gain(larger, times, {larger: 1.2})  # 2.2 tokens in at least 21 ms; plain decoding: 2.1
    assert not can_gain(larger, times, {larger: 1.05})
    assert can_gain(PLAIN, times, {})


def test_a_tree_that_loses_in_the_first_round_is_not_timed_again(monkeypatch):
    """At 10 ms a row, what accepts one token in 8 rows loses; larger trees of its kind are never timed."""
    timed = []

    def step_times(model, candidate, prompt, batch, temperature):
        timed.append((candidate, len(prompt)))
        return [10.0 * candidate.nodes] * 4

    small, middle, large = Candidate("hybrid", 4, 2), Candidate("hybrid", 8, 3), Candidate("hybrid", 16, 4)
    chain = Candidate("chain", 2, 1)
    monkeypatch.setattr(step_cost, "step_times", step_times)
    monkeypatch.setattr(step_cost, "bundled_prompts", lambda _: [list(range(400))])
    monkeypatch.setattr(step_cost, "candidates_at", lambda _: [small, middle, large, chain])
    model = type("Model", (), {"tokenizer": None})
    times = step_cost.measure(model, 8, False, {small: 1.5, middle: 2.0, large: 2.5, chain: 1.5})
    assert times == Times({PLAIN: 10.0, small: 40.0, chain: 20.0}, 1.0)
    rounds = step_cost.ROUNDS
    assert [one for one, _ in timed] == [PLAIN, chain, small] + [PLAIN, chain] * (rounds - 1)
    assert {length for _, length in timed} == {16}  # the shortest: 64 tokens among 8 rows would be 8


def test_a_machine_that_slows_down_between_rounds_changes_no_ratio(monkeypatch):
    """Every round at another pace: a tree of twice a plain step's time has twice the median of plain steps."""
    tree, paces = Candidate("hybrid", 4, 2), itertools.cycle([10.0, 30.0, 20.0])
    pace = 0.0

    def step_times(model, candidate, prompt, batch, temperature):
        nonlocal pace
        pace = next(paces) if candidate == PLAIN else pace
        return [pace * (1 if candidate == PLAIN else 2)] * 4

    monkeypatch.setattr(step_cost, "ROUNDS", 3)
    monkeypatch.setattr(step_cost, "step_times", step_times)
    monkeypatch.setattr(step_cost, "bundled_prompts", lambda _: [list(range(400))])
    monkeypatch.setattr(step_cost, "candidates_at", lambda _: [tree])
    times = step_cost.measure(type("Model", (), {"tokenizer": None}), 1, False, {tree: 1.5})
    assert times == Times({PLAIN: 20.0, tree: 40.0}, 3.0)


def test_only_what_may_be_fastest_is_timed_on():
    """By tokens per second of candidates whose E[accepted] is known; plain decoding always is."""
    fast, near, slow, unknown = (Candidate("chain", depth + 1, depth) for depth in (1, 2, 3, 5))
    times = {PLAIN: 100.0, fast: 10.0, near: 12.0, slow: 20.0, unknown: 99.0}
    accepted = {fast: 1.0, near: 1.0, slow: 1.0}
    assert [one for one in times if is_near_best(one, times, accepted)] == [PLAIN, fast, near, unknown]


@pytest.mark.parametrize(("found", "kept"), [([1.1], True), ([2.0, 1.4], True), ([2.0, 1.8], False)])
def test_times_of_a_busy_machine_are_taken_again_and_not_kept(tmp_path, monkeypatch, recwarn, found, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    left = iter(found)
    monkeypatch.setattr(step_cost, "measure", lambda *_: Times(TIMES, next(left)))
    costs = StepCosts(KEY)
    assert costs.measure(None, 1, False, {}) == TIMES and costs.known(1, False) == TIMES
    assert (StepCosts(KEY).known(1, False) == TIMES) == kept
    assert any("the machine is busy" in str(one.message) for one in recwarn) != kept


def test_out_of_time_the_smaller_trees_are_what_is_known(tmp_path, monkeypatch):
    """They are timed first, all kinds; the times serve this process only. Nothing but plain steps is not enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_cost, "bundled_prompts", lambda _: [[0] * 99])
    monkeypatch.setattr(step_cost, "step_times", lambda *_: iter([10.0, 10.0]))

    def shown(count):
        def first(items):
            for index, item in enumerate(items):
                if index == count:
                    raise OutOfTime
                yield item

        return first

    costs, model = StepCosts(KEY), type("Model", (), {"tokenizer": None})
    with pytest.warns(UserWarning, match="measuring was cut short"):
        found = costs.measure(model, 1, False, {}, shown(5))
    assert [one.nodes for one in found] == [1, 2, 3, 4, 4]
    assert costs.known(1, False) == found and StepCosts(KEY).known(1, False) is None
    with pytest.raises(OutOfTime):
        costs.measure(model, 2, False, {}, shown(1))


def test_times_that_a_generation_contradicts_are_measured_again_once(measured):
    costs, tree = StepCosts(KEY), Candidate("hybrid", 16, 6)
    costs.measure(None, 1, False, {})
    costs.observe(1, False, tree, 30.0)
    assert costs.known(1, False) == TIMES
    costs.observe(1, False, tree, 60.0)
    assert costs.known(1, False) is None
    costs.measure(None, 1, False, {})
    costs.observe(1, False, tree, 60.0)
    assert costs.known(1, False) == TIMES
