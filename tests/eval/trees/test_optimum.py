"""`python -m eval.trees.optimum` on its smallest world."""

import pytest

from eval.trees import optimum

pytest.importorskip("scipy")


def test_a_row_per_shape_and_tree(monkeypatch, capsys):
    monkeypatch.setattr(optimum, "SHAPES", optimum.SHAPES[:1])
    assert optimum.main(["--worlds", "1", "--trees", "hybrid", "rsd", "topk"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.strip().splitlines()[2:]]
    assert [row[4] for row in rows] == ["hybrid", "rsd", "topk"]
    for row in rows:
        token, ours, best = map(float, row[5:8])
        assert 0 < token <= ours + 1e-9 <= best + 2e-9


def test_no_world_is_refused(capsys):
    assert optimum.main(["--worlds", "0"]) == 2
    assert "--worlds 0: expected at least 1" in capsys.readouterr().err
