"""`--nodes auto`: the choice is measured once and kept; several processes do not choose apart."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eagle.tuning.step_cost import Point
from eval.__main__ import main
from eval.questions.prompts import prompt_format
from eval.runs.load_models import load
from eval.runs.methods import Decoding
from eval.speed import budget
from eval.speed.budget import kept_or_measured, table

PAIR = Path(__file__).parents[3] / "checkpoints" / "demo"
TOKENIZER = SimpleNamespace(chat_template="x")


def test_slowdowns_are_shown_and_not_chosen():
    plain, slow, fast = Point(1, 1, 1.0, 5.0, 200.0), Point(9, 4, 1.5, 10.0, 150.0), Point(5, 3, 2.0, 8.0, 250.0)
    assert "| 0.75x (slower) |  |" in table([plain, slow])
    assert "| 1.00x | chosen |" in table([plain, slow])
    assert "| 1.25x | chosen |" in table([plain, slow, fast])
    assert table([slow, slow._replace(nodes=60)]).count("chosen") == 1


def test_a_choice_is_measured_once_and_kept(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(budget, "bundled_problems", lambda *_: [[1]])
    monkeypatch.setattr(budget, "measure", lambda *_, **given: calls.append(given) or [Point(9, 4, 2.0, 10.0, 200.0)])
    path = tmp_path / "run" / "budget.json"
    engine = SimpleNamespace(tokenizer=TOKENIZER)
    first, second = (kept_or_measured(path, engine, None, Decoding(min_p=0.1), 3) for _ in range(2))
    assert first == second == Decoding(min_p=0.1, nodes=9, depth=4)
    assert calls == [{"seed": 3, **Decoding(min_p=0.1).sampling()}]
    assert json.loads(path.read_text())["sampling"]["min_p"] == 0.1


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"chosen": 3}', '{"chosen": {"nodes": 5}}', '{"chosen": {"nodes": "x", "depth": 1}}']
)
def test_a_damaged_choice_is_named(tmp_path, content):
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="budget.json: expected the choice of an earlier run"):
        kept_or_measured(path, None, None, Decoding(), 0)


@pytest.mark.parametrize(
    ("flag", "remedy"), [("--nodes", "run python -m eval.speed.budget first"), ("--dtype", "pass --dtype")]
)
def test_several_processes_do_not_choose_apart(tmp_path, monkeypatch, capsys, flag, remedy):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    arguments = ["--bench", "gsm8k", "--protocol", "sample", "--base-model-path", "T", "--ea-model-path", "H"]
    arguments += [flag, "auto", "--methods", "hybrid+hsd", "--output", str(tmp_path)]
    assert main(arguments, load=lambda *_, **__: SimpleNamespace(tokenizer=TOKENIZER)) == 2
    assert remedy in capsys.readouterr().err


def test_bundled_problems_are_prompts_of_the_evaluation():
    engine = load(str(PAIR / "target"), None, "float32")
    style = prompt_format(engine.tokenizer, "")
    first, second = budget.bundled_problems(engine.tokenizer, style, 2)
    assert first != second
    assert "How many" in engine.tokenizer.decode(first)


def test_the_command_prints_every_candidate(pair_flags, capsys, monkeypatch):
    monkeypatch.setattr(budget, "measure", functools.partial(budget.measure, candidates=((1, 1), (5, 3))))
    assert budget.main([*pair_flags, "--problems", "1", "--tokens", "4"]) == 0
    table = capsys.readouterr().out
    assert "| 1 | 1 | 1.00 |" in table
    assert "| 5 | 3 |" in table
    assert table.count("chosen") == 1
