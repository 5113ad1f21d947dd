"""`python -m eval.trees.optimum` on its smallest world."""

import pytest

from eval.trees import optimum

pytest.importorskip("scipy")


def test_a_row_per_shape(monkeypatch, capsys):
    monkeypatch.setattr(optimum, "SHAPES", optimum.SHAPES[:1])
    assert optimum.main(["--worlds", "1"]) == 0
    *_, row = capsys.readouterr().out.strip().splitlines()
    token, ours, best = (float(cell) for cell in row.strip("| ").split(" | ")[4:7])
    assert 0 < token <= ours + 1e-9 <= best + 2e-9


def test_no_world_is_refused(capsys):
    assert optimum.main(["--worlds", "0"]) == 2
    assert "--worlds 0: expected at least 1" in capsys.readouterr().err
