"""The law through a head's points."""

import json

import pytest
from matplotlib.image import imread

from eagle.train.evaluation import learning

TOKENS = [1, 2, 4, 8]


def series(**changed):
    points = [{"tokens": t, "value": 1 - 0.5 * t**-0.25} for t in TOKENS]
    return {"name": "a pair", "y": "overlap", "limit": 1, "points": points, **changed}


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def test_exact_points_are_foretold(tmp_path, capsys):
    """Both laws give back points that lie on them, and the numbers to their right."""
    line = series(y="E[accepted]", limit=None, points=[{"tokens": t, "value": t.bit_length()} for t in TOKENS])
    path, picture = write(tmp_path / "points.json", [series(), line]), tmp_path / "curve.png"
    assert learning.main([path, "--output", str(picture), "--at", "16", "256"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| a pair: overlap | 0.500 (1M) | 0.703 (8M) | 0.703 | 0.75 | 0.88 |"
    assert rows[3] == "| a pair: E[accepted] | 1.000 (1M) | 4.000 (8M) | 4.000 | 5.00 | 9.00 |"
    assert imread(picture).std() > 0


@pytest.mark.parametrize(
    "content",
    [5, [{}], [series(points=[])], [series(points=[{"tokens": 1, "value": 0.5}])], [series(points=[{"tokens": "x"}])]]
    + [[series(points=[{"tokens": t, "value": 0.5} for t in (0, 1)])]],
)
def test_what_is_no_series_is_refused(tmp_path, capsys, content):
    assert learning.main([write(tmp_path / "points.json", content)]) == 2
    assert f"error: {tmp_path / 'points.json'}" in capsys.readouterr().err
