"""`python -m eval.measure.gains`: a picture of two runs, and what is refused."""

import json

import pytest

from eval.measure import gains, ladder


@pytest.fixture
def run_file(tmp_path):
    values = {
        "nats": [[0.5], [0.7]],
        "topk+token@4": [[1.0], [1.2]],
        "topk+token@8": [[1.5], [1.6]],
        "hybrid+hsd@4": [[1.1], [1.3]],
        "hybrid+hsd@8": [[1.5], [1.9]],
    }
    found = {"0.6": ladder.summarise(values, ["topk+token", "hybrid+hsd"], [4, 8])}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"bench": "gsm8k", "pair": "tiny drafted by head", "found": found}))
    return path


def test_a_picture_of_two_runs_and_their_table(run_file, tmp_path):
    output, table = tmp_path / "gains.png", tmp_path / "gains.json"
    asked = [str(run_file), str(run_file), "--over", "topk+token", "--output", str(output), "--table", str(table)]
    assert gains.main(asked) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    (made,) = json.loads(table.read_text())["tables"]
    assert made["header"] == ["pair", "bench", "nats", "topk+token"] and len(made["rows"]) == 2
    assert made["rows"][0][:3] == ["tiny drafted by head", "gsm8k", "0.60"] and made["rows"][0][3].startswith("+9% [")


def test_a_method_that_was_not_measured_is_named(run_file, tmp_path, capsys):
    output = tmp_path / "gains.png"
    assert gains.main([str(run_file), "--output", str(output)]) == 2
    assert "--over rsd+token" in capsys.readouterr().err and not output.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"found": {"1": {"gains": {}}}}'])
def test_other_files_are_refused(tmp_path, capsys, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert gains.main([str(path), "--output", str(tmp_path / "gains.png")]) == 2
    assert f"{path}: not a table.json" in capsys.readouterr().err
