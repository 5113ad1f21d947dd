"""`python -m eval.measure.step_time` on a tiny pair and on a random shape."""

import json

import pytest

from eval.measure import step_time

TINY = ["--nodes", "5", "--depth", "2", "--context", "80", "--steps", "2", "--rounds", "1"]


def test_rows_by_variant(pair_flags, tmp_path, capsys):
    assert step_time.main([*pair_flags, *TINY, "--trees", "topk", "hybrid", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "step_time.json").read_text())["rows"]
    assert [row["tree"] for row in rows] == ["none", "topk", "hybrid"]
    assert rows[0]["plain_steps"] == 1
    assert all(row["step"] > 0 and row["floor"] > 0 and row["n"] == 2 for row in rows)
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("| hybrid | 5 | 80 |") == 1


def test_random_weights_of_a_known_shape(capsys):
    assert step_time.main([*TINY, "--shape", "demo", "--layers", "8", "--trees", "topk", "--device", "cpu"]) == 0
    assert "| topk | 5 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context", "20"], "--context 20: expected more than"),
        (["--output", "FILE/below"], "cannot be written"),
    ],
)
def test_errors_come_before_the_work(pair_flags, tmp_path, capsys, flags, message):
    (tmp_path / "file").write_text("")
    flags = [flag.replace("FILE", str(tmp_path / "file")) for flag in flags]
    assert step_time.main([*pair_flags, *TINY, *flags]) == 2
    assert message in capsys.readouterr().err
