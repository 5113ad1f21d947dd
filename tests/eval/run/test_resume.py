"""A run that is cut anywhere and continued gives what an unbroken run gives; so do shards."""

import random
import signal

import pytest

from eagle.jsonl import open_locked
from eval.report import report
from eval.run import answers
from tests.eval.helpers import FILES, evaluate, numbers, records, started


def test_every_method_answers_every_question_once(unbroken):
    for name in FILES:
        assert [entry["question_id"] for entry in records(unbroken / name)] == list(range(16))


@pytest.mark.parametrize("seed", range(4))
def test_cut_files_are_completed(unbroken, tmp_path, seed):
    """Every file cut at a random byte: whole records stay, the torn line goes, the rest is answered again."""
    chance = random.Random(seed)
    for name in FILES:
        content = (unbroken / name).read_bytes()
        (tmp_path / name).write_bytes(content[: chance.randrange(len(content))])
        meta = name.replace(".jsonl", ".meta.json")
        (tmp_path / meta).write_bytes((unbroken / meta).read_bytes())
    assert evaluate(tmp_path) == 0
    for name in FILES:
        assert records(tmp_path / name) == records(unbroken / name)
    assert numbers(tmp_path) == numbers(unbroken)


def test_kill_9(unbroken, tmp_path):
    running = started(tmp_path, 0.4)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = len(records(tmp_path / FILES[0]))
    assert 1 <= before < 16
    assert evaluate(tmp_path) == 0
    assert [records(tmp_path / name) for name in FILES] == [records(unbroken / name) for name in FILES]


def test_a_finished_run_asks_nothing(unbroken):
    before = [(unbroken / name).read_bytes() for name in FILES]
    assert evaluate(unbroken) == 0
    assert [(unbroken / name).read_bytes() for name in FILES] == before


def test_other_settings_are_refused_by_name(unbroken, capsys):
    assert evaluate(unbroken, "--seed", "5") == 2
    message = capsys.readouterr().err
    assert "seed was 0, is now 5" in message
    assert "--fresh" in message


def test_fresh_starts_over(tmp_path):
    assert evaluate(tmp_path, "--num-questions", "2") == 0
    assert evaluate(tmp_path, "--num-questions", "3", "--fresh") == 0
    assert len(records(tmp_path / FILES[0])) == 3


def test_shards_make_one_run(unbroken, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert evaluate(tmp_path) == 0
    assert len(records(tmp_path / "plain.rank1-of-2.jsonl")) == 8
    report.write([str(tmp_path)], tmp_path)
    assert numbers(tmp_path) == numbers(unbroken)
    assert records(tmp_path / "model_answer" / FILES[2]) == records(unbroken / FILES[2])


def test_a_missing_shard_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert evaluate(tmp_path, "--num-questions", "2") == 0
    with pytest.raises(ValueError, match="shard 1 of 2 is missing"):
        answers.read([str(tmp_path)])


def test_two_runs_cannot_write_one_file(unbroken, capsys):
    with open_locked(unbroken / FILES[0]):
        assert evaluate(unbroken) == 2
    assert "another run is writing this file" in capsys.readouterr().err


def test_a_damaged_line_is_named(tmp_path):
    assert evaluate(tmp_path, "--num-questions", "2") == 0
    place = tmp_path / FILES[0]
    place.write_bytes(b"{oops\n" + place.read_bytes())
    with pytest.raises(ValueError, match="line 1: not JSON"):
        answers.read([str(place)])
