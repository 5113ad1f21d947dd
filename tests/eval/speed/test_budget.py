"""`--nodes auto`: the quotient decides, the choice is kept, several processes do not choose apart."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.__main__ import main
from eval.questions.prompts import prompt_format
from eval.runs.load_models import load
from eval.runs.methods import Decoding
from eval.runs.runner import Task
from eval.speed import budget
from eval.speed.budget import PLAIN, Point, choose, kept_or_measured, measure, summarise, table

PAIR = Path(__file__).parents[3] / "checkpoints" / "demo"


def step(expected: float, seconds: float):
    return SimpleNamespace(expected_accepted=expected, seconds={"draft": seconds / 4, "score": 3 * seconds / 4})


def test_a_point_is_mean_tau_over_the_median_step():
    point = summarise(9, 4, [step(1.0, 0.010), step(2.0, 0.020), step(3.0, 0.500)])
    assert point == Point(9, 4, pytest.approx(3.0), pytest.approx(20.0), pytest.approx(150.0))


def test_the_fastest_wins_and_of_equals_the_smallest():
    slow, fast, same = Point(60, 7, 4.0, 40.0, 100.0), Point(21, 5, 3.0, 20.0, 150.0), Point(9, 4, 1.5, 10.0, 150.0)
    assert choose([slow, fast, same]) == same
    assert table([slow, same]).count("chosen") == 1


def test_plain_decoding_is_shown_and_never_chosen():
    plain, slow = Point(1, 1, 1.0, 5.0, 200.0), Point(9, 4, 1.5, 10.0, 150.0)
    assert choose([plain, slow]) == slow
    assert "| 0.75x | chosen |" in table([plain, slow]) and "| 1.00x |  |" in table([plain, slow])


def test_no_steps_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no step was measured with 9 nodes"):
        summarise(9, 4, [])


def test_a_choice_is_measured_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(budget, "measure", lambda *_: calls.append(1) or [Point(9, 4, 2.0, 10.0, 200.0)])
    path = tmp_path / "run" / "budget.json"
    task = Task(None, None, Decoding())
    assert kept_or_measured(path, task) == kept_or_measured(path, task) == (9, 4)
    assert calls == [1] and json.loads(path.read_text())["chosen"]["nodes"] == 9


def test_several_processes_are_told_to_choose_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    arguments = [
        "--bench",
        "gsm8k",
        "--protocol",
        "sample",
        "--base-model-path",
        "T",
        "--ea-model-path",
        "H",
        "--nodes",
        "auto",
        "--methods",
        "hybrid+hsd",
        "--output",
        str(tmp_path),
    ]
    assert main(arguments, load=lambda *_, **__: SimpleNamespace(tokenizer=SimpleNamespace(chat_template="x"))) == 2
    assert "run python -m eval.speed.budget first" in capsys.readouterr().err


def test_both_curves_are_measured_on_the_demo_pair():
    engine = load(str(PAIR / "target"), str(PAIR / "eagle3"), "float32")
    task = Task(engine, prompt_format(engine.tokenizer, ""), Decoding())
    plain, drafted = measure(task, problems=1, tokens=12, candidates=(PLAIN, (5, 3)))
    assert (plain.nodes, plain.tau) == (1, 1.0) and (drafted.nodes, drafted.depth) == (5, 3)
    assert 1 < drafted.tau <= 4 and drafted.step_ms > 0
