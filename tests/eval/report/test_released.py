"""Answer files in EAGLE's own format, recomputed."""

import json
import re

import pytest

from eval.report.released import main
from tests.eval.helpers import evaluate


def write(path, rows):
    path.write_text(
        "".join(
            json.dumps(
                {
                    "question_id": i,
                    "choices": [
                        {
                            "index": 0,
                            "turns": ["x"],
                            "idxs": [steps - 1],
                            "new_tokens": [tokens],
                            "wall_time": [seconds],
                        }
                    ],
                }
            )
            + "\n"
            for i, (tokens, steps, seconds) in enumerate(rows)
        )
    )
    return str(path)


def test_by_hand(tmp_path, capsys):
    first = write(tmp_path / "a.jsonl", [(40, 10, 1.0), (520, 190, 4.0)])
    second = write(tmp_path / "b.jsonl", [(50, 10, 1.0), (100, 20, 1.0)])
    assert main([first, second]) == 0
    text = capsys.readouterr().out
    assert "| a.jsonl | 2 | 2.80 [" in text
    assert "| 1.80 [" in text
    assert "| 112.0 [" in text
    assert "| 72.0 | 1 |" in text
    assert "| b.jsonl | 2 | 5.00 [5.00, 5.00] | 4.00 [4.00, 4.00] | 75.0 [50.0, 100.0] | 60.0 | – |" in text
    assert "mean of the questions' own tau: +1.63 +- 0.63" in text


def test_our_answer_files_are_in_that_format(tmp_path, capsys):
    assert evaluate(tmp_path, methods=("topk+token",)) == 0
    assert re.search(r"\| topk\+token \| \d\.\d\d", capsys.readouterr().out)
    assert main([str(tmp_path / "topk+token.jsonl")]) == 0
    assert "| topk+token.jsonl | 16 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question_id": 1, "choices": [{"turns": ["x"]}]}\n', "question 1: no 'new_tokens'"),
        ("", "no questions in it"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    assert main([str(tmp_path / "x.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_files_without_a_common_question(tmp_path, capsys):
    first = write(tmp_path / "a.jsonl", [(4, 1, 1.0)])
    second = tmp_path / "b.jsonl"
    second.write_text((tmp_path / "a.jsonl").read_text().replace('"question_id": 0', '"question_id": 9'))
    assert main([first, str(second)]) == 2
    assert "share no question" in capsys.readouterr().err
