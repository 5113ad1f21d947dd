"""Which positions a batch trains, on the example drawn in the module's docstring."""
import torch

from eagle.train.objective import align

ANSWER = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.bool)


def test_the_drawing():
    where = align(ANSWER, steps=2)
    assert where.predicted[0].nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert where.origins.tolist() == [[1, 2, 3, 4, 5]]
    assert where.rows_of_step(0).tolist() == [[-1, 0, 1, 2, 3]]
    assert where.rows_of_step(1).tolist() == [[0, 1, 2, 3, -1]]


def test_every_law_is_used_once_per_step():
    torch.manual_seed(0)
    answer = torch.rand(5, 20) < 0.4
    answer[:, :8] = False
    where = align(answer, steps=4)
    count = int(where.predicted.sum())
    for step in range(4):
        rows = where.rows_of_step(step)
        assert sorted(rows[rows >= 0].tolist()) == list(range(count))


def test_rows_are_independent():
    answer = torch.cat([ANSWER, torch.roll(ANSWER, -2, dims=1)])
    where, alone = align(answer, 3), align(answer[1:], 3)
    rows, first = where.rows_of_step(1)[1], int(where.predicted[0].sum())
    expected = alone.rows_of_step(1)[0]
    assert [r - first if r >= 0 else -1 for r in rows[rows >= 0].tolist()] == expected[expected >= 0].tolist()


def test_a_batch_without_answers():
    where = align(torch.zeros(2, 6, dtype=torch.bool), 3)
    assert where.origins.shape == (2, 1)
    assert (where.rows_of_step(0) == -1).all()
