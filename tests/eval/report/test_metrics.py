"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from eval.report import estimates, metrics
from eval.run.answers import Answers
from tests.eval.helpers import entry, turn


def run(*entries, name="m", tree="topk"):
    return Answers(name, {"tree": tree, "verifier": "token", "method": name, "lossy": False}, [], list(entries))


FIRST = entry(0, turn([3, 1], seconds=2.0))  # two steps: 3 + 1 and 1 + 1 tokens, 7 tokens with the first one
SECOND = entry(1, turn([0], seconds=1.0), turn([2, 2], truncated=[0, 1], seconds=3.0))


def test_rates_are_ratios_of_sums():
    both = [FIRST, SECOND]
    assert metrics.ratio_of(both, "emitted", "steps").value == pytest.approx((4 + 2 + 1 + 3 + 2) / 5)
    assert metrics.ratio_of(both, "accepted", "steps").value == pytest.approx((3 + 1 + 0 + 2 + 2) / 5)
    assert metrics.ratio_of(both, "tokens", "seconds").value == pytest.approx((7 + 2 + 6) / 6.0)


def test_tau_is_one_less_token_per_step():
    tokens = metrics.column([FIRST], "tokens").sum()
    assert metrics.ratio_of([FIRST], "emitted", "steps").value == (tokens - 1) / 2


def test_acceptance_by_depth_leaves_truncated_steps_out():
    assert metrics.accepted_distribution([FIRST, SECOND]) == [0.25, 0.25, 0.25, 0.25]  # 3, 1, 0, 2
    assert metrics.acceptance_by_depth([FIRST, SECOND]) == pytest.approx([0.75, 0.5, 0.25])
    assert sum(metrics.acceptance_by_depth([FIRST, SECOND])) == pytest.approx(1.5)


def test_phase_times():
    assert metrics.phase_milliseconds([FIRST])["score"] == pytest.approx(2.0)
    assert metrics.phase_milliseconds([entry(0, turn([]))]) is None


def test_bootstrap_is_deterministic_and_contains_the_value():
    values = np.arange(1.0, 30.0)
    once, again = (estimates.bootstrap(estimates.ratio, values, np.ones(29)) for _ in range(2))
    assert once == again
    assert once.low < once.value == 15.0 < once.high


def test_bootstrap_interval_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found = estimates.bootstrap(estimates.ratio, values, np.ones(400))
    half = 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_equal_questions_have_no_spread():
    same = [entry(i, turn([2, 2])) for i in range(5)]
    assert metrics.ratio_of(same, "emitted", "steps") == (3.0, 3.0, 3.0)


def test_one_question_has_no_interval():
    assert metrics.ratio_of([FIRST], "emitted", "steps") == (3.0, None, None)


def test_nothing_to_measure_is_none():
    assert metrics.ratio_of([], "emitted", "steps") is None
    assert metrics.ratio_of([entry(0, turn([]))], "emitted", "steps") is None


def test_differences_use_shared_questions_only():
    left, right = run(FIRST, SECOND, entry(5, turn([9]))), run(FIRST, SECOND, entry(6, turn([0])))
    assert metrics.difference(left, right, "emitted", "steps") == (0.0, 0.0, 0.0)


def test_speedup_over_plain():
    ours = run(entry(0, turn([3], seconds=1.0)), entry(1, turn([3], seconds=1.0)))
    plain = run(entry(0, turn([3], seconds=2.0)), entry(1, turn([3], seconds=2.0)), entry(2, turn([3], seconds=9.0)))
    assert metrics.speedup(ours, plain).value == pytest.approx(2.0)


def test_failed_questions_are_in_no_number():
    assert list(metrics.finished(run(FIRST, entry(1, error="RuntimeError: no")))) == [0]


def test_runaways_and_same_tokens():
    endless = entry(3, turn([1], stop="length"))
    assert metrics.runaways([FIRST, endless]) == [3]
    assert metrics.same_tokens(run(FIRST, SECOND), run(FIRST, entry(1, turn([4])))) == (1, 2)


def test_wilson_by_hand():
    assert estimates.wilson(0, 16) == pytest.approx((0.0, 0.0, 0.1936), abs=1e-3)
    assert estimates.wilson(8, 16) == pytest.approx((0.5, 0.2800, 0.7200), abs=1e-3)
    assert estimates.wilson(0, 0) is None
