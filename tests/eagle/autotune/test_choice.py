"""Which candidate is chosen, from tables and times made up here."""

import pytest

from eagle.autotune.calibration import Expected, Table
from eagle.autotune.candidates import CANDIDATES, PLAIN, Candidate, candidates_at, kinds_of, nearest
from eagle.autotune.choice import choose, points

TOPK, HYBRID, CHAIN = Candidate("topk", 16, 6), Candidate("hybrid", 16, 6), Candidate("chain", 4, 3)
ALL = ("topk", "hybrid", "chain")


def table(*expected, error=0.0):
    rows = zip((TOPK, HYBRID, CHAIN), expected)
    return Table(1.0, 8, tuple(Expected(*candidate, value, error) for candidate, value in rows))


def test_most_tokens_per_second_wins_not_most_tokens():
    times = {PLAIN: 10.0, TOPK: 20.0, HYBRID: 25.0, CHAIN: 12.0}
    found = points(table(1.0, 1.9, 0.8), times, ALL)
    assert [point.tokens_per_second for point in found] == pytest.approx([100, 100, 116, 150])
    assert choose(found).candidate == CHAIN
    assert choose(points(table(1.0, 1.9, 0.8), times, ("topk", "hybrid"))).candidate == HYBRID


@pytest.mark.parametrize(("expected", "chosen"), [(0.0, PLAIN), (1.05, PLAIN), (1.07, TOPK)])
def test_a_tree_needs_three_percent_over_plain_decoding(expected, chosen):
    assert choose(points(table(expected), {PLAIN: 10.0, TOPK: 20.0}, ALL)).candidate == chosen


def test_the_advantage_must_hold_one_standard_error_lower():
    times = {PLAIN: 10.0, TOPK: 20.0}
    assert choose(points(table(1.3, error=0.2), times, ALL)).candidate == TOPK
    assert choose(points(table(1.3, error=0.3), times, ALL)).candidate == PLAIN


def test_a_slow_head_leaves_plain_decoding():
    """Random weights: nothing is accepted, so every step is lost time."""
    assert choose(points(table(0.01, 0.02, 0.01), {PLAIN: 10.0, TOPK: 16.0, HYBRID: 18.0, CHAIN: 13.0}, ALL)).tau == 1


def test_what_has_no_time_is_left_out():
    found = points(table(9.0, 1.0, 1.0), {PLAIN: 10.0, HYBRID: 12.0}, ALL)
    assert [point.candidate for point in found] == [PLAIN, HYBRID]
    assert choose(points(table(9.0), {PLAIN: 10.0}, ALL)).candidate == PLAIN


@pytest.mark.parametrize(
    ("temperature", "known", "want"),
    [
        (0.6, (0.0, 0.5, 0.7, 1.0), 0.5),
        (0.66, (0.0, 0.5, 0.7, 1.0), 0.7),
        (0.1, (0.0, 0.5, 1.0), 0.5),  # sampling is not like greedy decoding, however cold
        (0.0, (0.0, 0.5), 0.0),
        (0.0, (0.5, 1.0), 0.5),
        (2.0, (0.0,), 0.0),
    ],
)
def test_the_nearest_temperature(temperature, known, want):
    assert nearest(temperature, known) == want


def test_at_temperature_0_the_hybrid_tree_is_the_top_k_tree():
    assert kinds_of("auto", 0.0) == ("topk", "chain")
    assert kinds_of("hybrid", 0.0) == ("topk",)
    assert kinds_of("hybrid", 0.5) == ("hybrid",)
    assert set(candidates_at(1.0)) == set(CANDIDATES)
    assert not any(candidate.tree == "hybrid" for candidate in candidates_at(0.0))


def test_a_kind_without_candidates_is_refused():
    with pytest.raises(ValueError, match="tree='multi'.*auto, topk, hybrid, rsd, chain"):
        kinds_of("multi", 1.0)
