"""The table of what `--tree auto` chooses from; several processes do not choose apart."""

from types import SimpleNamespace

import pytest

from eagle.autotune import auto, step_cost
from eagle.autotune.candidates import PLAIN, SHAPES, Candidate, candidates_at
from eagle.autotune.choice import Point
from eval.__main__ import main
from eval.measure import budget
from eval.measure.budget import table

TOKENIZER = SimpleNamespace(chat_template="x")


def test_slowdowns_are_shown_and_not_chosen():
    plain = Point(PLAIN, 1.0, 0.0, 5.0)
    slow = Point(Candidate("topk", 9, 4), 1.5, 0.1, 10.0)
    fast = Point(Candidate("hybrid", 5, 3), 2.0, 0.1, 8.0)
    assert "| topk | 9 | 4 | 1.50 ± 0.10 | 10.0 | 150 | 0.75x (slower) |  |" in table([plain, slow])
    assert "| plain | 1 | 1 | 1.00 | 5.0 | 200 | 1.00x | chosen |" in table([plain, slow])
    assert "| 1.25x | chosen |" in table([plain, slow, fast])
    assert table([plain, slow, fast]).count("chosen") == 1


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--nodes", "auto", "--methods", "hybrid+hsd"], "run python -m eval.measure.budget first"),
        (["--methods", "plain", "auto+hsd"], "run python -m eval.measure.budget first"),
    ],
)
def test_several_processes_do_not_choose_apart(tmp_path, monkeypatch, capsys, flags, remedy):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    arguments = ["--bench", "gsm8k", "--protocol", "sample", "--base-model-path", "T", "--ea-model-path", "H"]
    arguments += [*flags, "--output", str(tmp_path)]
    assert main(arguments, load=lambda *_, **__: SimpleNamespace(tokenizer=TOKENIZER)) == 2
    assert remedy in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_every_candidate(pair_flags, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(auto, "BRIEF_STATES", 1)
    times = dict.fromkeys([PLAIN, *candidates_at(1.0)], 10.0)
    monkeypatch.setattr(step_cost, "measure", lambda *_: step_cost.Times(times, 1.0))
    assert budget.main([*pair_flags, "--tree", "hybrid", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| hybrid |") == len(SHAPES)
    assert printed.count("chosen") == 1
    assert budget.main([*pair_flags, "--batch", "0"]) == 2
