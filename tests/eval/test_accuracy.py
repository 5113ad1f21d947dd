"""`python -m eval.accuracy` on a tiny pair: answers of every method, continued where it stopped, and the table."""

import json

import pytest

from eval import accuracy
from eval.run.methods import resolve


@pytest.fixture
def questions(tmp_path):
    lines = [json.dumps({"question": f"{n} + {n}?", "answer": f"#### {2 * n}"}) for n in range(5)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "sums.jsonl"


@pytest.fixture
def flags(pair_flags, questions, tmp_path):
    sizes = ["--batch", "2", "--max-new-tokens", "6", "--nodes", "5", "--depth", "2", "--num-questions", "3", "--quiet"]
    methods = ["--methods", "plain", "hybrid+hsd", "chain+published"]
    return [*pair_flags, "--question-file", str(questions), *sizes, *methods, "--output", str(tmp_path / "out")]


def answers(path):
    return [answer for line in path.read_text().splitlines()[1:] for answer in json.loads(line)["answers"]]


def test_a_run_that_goes_on_with_more_questions(flags, tmp_path, capsys):
    assert accuracy.main(flags) == 0
    path = tmp_path / "out" / "hybrid+hsd.jsonl"
    first = answers(path)
    assert [answer["question_id"] for answer in first] == [0, 1, 2]
    assert all(0 < answer["tokens"] <= 6 and answer["steps"] < 6 for answer in first)
    path.write_bytes(path.read_bytes()[:-5])  # stopped inside the second batch's line
    assert accuracy.main([*flags, "--num-questions", "5"]) == 0
    assert [answer["question_id"] for answer in answers(path)] == [0, 1, 2, 3, 4]
    assert answers(path)[:2] == first[:2]
    made = json.loads((tmp_path / "out" / "accuracy.json").read_text())["tables"][0]
    assert [row[0] for row in made["rows"]] == ["plain", "hybrid+hsd", "chain+published (lossy)"]
    assert {row[-1] for row in made["rows"]} == {"5"}
    assert made["rows"][0][3] == "1.00"
    assert "| chain+published (lossy) |" in capsys.readouterr().out
    assert accuracy.main([*flags, "--seed", "4"]) == 2
    assert "was measured with other settings" in capsys.readouterr().err


def test_several_answers_to_a_question(flags, tmp_path):
    assert accuracy.main([*flags, "--samples", "3", "--methods", "plain"]) == 0
    found = answers(tmp_path / "out" / "plain.jsonl")
    assert [answer["question_id"] for answer in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_difference_is_paired_over_questions():
    def answered(*right):
        common = {"tokens": 4, "steps": 3, "stop_reason": "eos"}
        return [{"question_id": number // 2, "correct": bool(x), **common} for number, x in enumerate(right)]

    found = {"plain": answered(1, 0, 1, 1, 0, 0), "hybrid+hsd": answered(1, 1, 1, 0, 1, 1)}
    made = accuracy.table(found, [resolve(name) for name in found], 3, 2)
    ours = made.rows[1]
    assert ours[1].startswith("83%")
    assert ours[2].startswith("+33%")  # of (+1/2, -1/2, +1)
    assert ours[3] == "1.00"
    assert accuracy.minus({1: 0.5, 2: 1.0}, {2: 0.5, 3: 0.0}).value == 0.5  # question 2 alone


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "plain", "transformers"], "--methods transformers: expected methods of this engine"),
        (["--samples", "0"], "--samples 0: expected a whole number, 1 or more"),
        (["--batch", "0"], "--batch 0: expected a whole number, 1 or more"),
        (["--methods", "fast"], "method 'fast' is not known"),
    ],
)
def test_flags_that_are_refused(flags, more, message, capsys):
    assert accuracy.main([*flags, *more]) == 2
    assert message in capsys.readouterr().err


def test_questions_without_a_number_are_refused(flags, questions, capsys):
    questions.write_text('{"question": "Why?", "answer": "Because."}\n' * 3)
    assert accuracy.main(flags) == 2
    assert "question 0 has no `#### n` or `\\boxed{...}` reference" in capsys.readouterr().err
