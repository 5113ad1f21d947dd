"""Choosing trees by the past of a request: the arithmetic, and the command on a tiny pair."""
import numpy as np
import pytest

from eval import adaptation
from eval.adaptation import Option


def test_the_past_alone_decides():
    expected = np.array([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    costs = np.ones(2)
    assert adaptation.choices_by_past(expected, costs, 0.5, start=1).tolist() == [1, 0, 1]
    assert adaptation.choices_by_past(expected, np.array([10.0, 1.0]), 0.5, start=0).tolist() == [0, 1, 1]


def test_requests_that_differ_reward_choosing():
    easy, hard = np.tile([1.0, 4.0], (20, 1)), np.tile([1.0, 1.2], (20, 1))
    costs = np.array([1.0, 2.0])
    sums = np.stack(list(adaptation.totals([easy, hard] * 8, costs, 1.0)))
    found = adaptation.gains(sums)
    assert found["hindsight"][0] > 0.05
    assert found["hindsight"][0] >= found["past"][0] > 0
    flat = np.stack(list(adaptation.totals([easy] * 8, costs, 1.0)))
    assert adaptation.gains(flat)["hindsight"][0] == 0


def test_options_are_read():
    assert Option.parse("16:5") == Option(16, 5, 1.0)
    assert Option.parse("16:5:13.7") == Option(16, 5, 13.7)
    with pytest.raises(ValueError, match="NODES:DEPTH"):
        Option.parse("16")
