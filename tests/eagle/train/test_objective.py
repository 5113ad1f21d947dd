"""Which positions a batch trains, on the example drawn in the module's docstring."""

import torch

from eagle.train.data.conversations import Example
from eagle.train.objective.alignment import align
from eagle.train.schedule import linear_ramp

ANSWER = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.bool)


def test_the_drawing():
    where = align(ANSWER)
    assert where.predicted[0].nonzero().flatten().tolist() == [4, 5, 6]
    assert where.origins.tolist() == [[3, 4, 5]]
    assert where.rows_of_step(0).tolist() == [[0, 1, 2]]
    assert where.rows_of_step(1).tolist() == [[1, 2, -1]]
    assert where.rows_of_step(5).tolist() == [[-1, -1, -1]]


def test_drafting_does_not_cross_into_the_next_answer():
    where = align(torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool))
    assert where.origins.tolist() == [[0, 1, 4, 5, 6]]
    assert where.rows_of_step(0).tolist() == [[0, 1, 2, 3, 4]]
    assert where.rows_of_step(1).tolist() == [[1, -1, 3, 4, -1]]
    assert where.rows_of_step(4).tolist() == [[-1, -1, -1, -1, -1]]  # origin 0 would be in the second answer


def test_against_the_definition():
    torch.manual_seed(0)
    answer = torch.rand(6, 25) < 0.8
    where, rows = align(answer), {}
    for b, u in where.predicted.nonzero().tolist():
        rows[b, u] = len(rows)
    assert set(rows) == {(b, u) for b in range(6) for u in range(1, 24) if answer[b, u] and answer[b, u + 1]}
    for step in range(4):
        found = where.rows_of_step(step)
        seen = set()
        for b, column in (found >= 0).nonzero().tolist():
            t = where.origins[b, column].item()
            assert answer[b, t + 1 : t + step + 3].all()
            assert rows[b, t + 1 + step] == found[b, column]
            seen.add((b, t))
        expected = {(b, t) for b in range(6) for t in range(25 - step - 2) if answer[b, t + 1 : t + step + 3].all()}
        assert seen == expected


def test_rows_count_what_examples_count():
    answer = [False, True, True, False, True, True, True]
    assert align(torch.tensor([answer])).predicted.sum() == Example([0] * 7, answer).drafted() == 3


def test_a_batch_without_answers():
    where = align(torch.zeros(2, 6, dtype=torch.bool))
    assert where.origins.shape == (2, 1)
    assert (where.rows_of_step(0) == -1).all()


def test_the_acceptance_weight_rises():
    assert [linear_ramp(share, 0.5, 0.4) for share in (0.0, 0.2, 0.4, 1.0)] == [0.0, 0.25, 0.5, 0.5]
    assert linear_ramp(0.0, 0.5, 0.0) == 0.5
