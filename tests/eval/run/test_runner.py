"""The loop over questions: order, seeds, failures, turns fed back."""

import json

import pytest
import torch

from eagle.digests import seed_of
from eval.questions import prompts
from eval.questions.benchmarks import Question
from eval.run import runner
from eval.run.methods import METHODS, Decoding, Models, from_flags, resolve
from tests.eval.fake import FakeEngine
from tests.eval.helpers import evaluate, records


class MemoryFile:
    """An answer file that stays in memory."""

    def __init__(self):
        self.done, self.entries, self.session, self.path = {}, [], 0, None

    def add(self, entry):
        self.entries.append(entry)


def play(questions, methods, **options):
    engine = FakeEngine()
    task = runner.Task(Models(engine), prompts.prompt_format(engine.tokenizer, "fake"), Decoding(), **options)
    runs = [runner.MethodRun(METHODS[name], MemoryFile()) for name in methods]
    runner.run(task, runs, questions, quiet=True)
    return engine, [run.answers.entries for run in runs]


def chat(number, *turns):
    return Question(number, "math", turns)


def test_methods_alternate_and_take_turns_to_begin():
    engine, _ = play([chat(i, f"question {i}") for i in range(3)], ["plain", "topk+token", "hybrid+hsd"])
    order = [tree for _, tree, _ in engine.asked]
    assert order[:3] == ["none", "topk", "hybrid"]  # the warm-up
    assert order[3:] == ["none", "topk", "hybrid", "topk", "hybrid", "none", "hybrid", "none", "topk"]


def test_the_first_answer_is_fed_back():
    engine, ((entry,),) = play([chat(7, "one", "two")], ["plain"], system_prompt="be brief")
    first = entry["choices"][0]["turns"][0]
    assert engine.asked[-1][0] == f"<system>be brief<user>one<assistant>{first}<user>two<assistant>"
    assert [len(turn["tokens"]) for turn in entry["measured"]] == entry["choices"][0]["new_tokens"]


def test_a_failing_question_is_recorded_and_the_others_go_on():
    questions = [chat(0, "fine"), chat(1, "fine", "please explode"), chat(2, "fine")]
    _, (entries,) = play(questions, ["topk+hsd"])
    assert [entry["error"] for entry in entries] == [None, "RuntimeError: out of memory, or so", None]
    assert len(entries[1]["measured"]) == 1


def test_a_method_that_cannot_run_stops_before_the_first_question(tmp_path, capsys):
    assert evaluate(tmp_path, methods=("plain", "transformers-assisted")) == 2
    assert "--draft-model-path" in capsys.readouterr().err


def test_answers_depend_on_seed_question_and_turn_only(tmp_path):
    assert evaluate(tmp_path / "a", methods=("plain", "topk+token")) == 0
    assert evaluate(tmp_path / "b", methods=("topk+token",)) == 0
    assert records(tmp_path / "a" / "topk+token.jsonl") == records(tmp_path / "b" / "topk+token.jsonl")
    assert evaluate(tmp_path / "c", "--seed", "1", methods=("topk+token",)) == 0
    assert records(tmp_path / "c" / "topk+token.jsonl") != records(tmp_path / "b" / "topk+token.jsonl")


def test_seeds_are_valid_and_distinct():
    seeds = {seed_of(seed, question, turn) for seed in range(3) for question in range(50) for turn in range(2)}
    assert len(seeds) == 300
    for seed in list(seeds)[:5]:
        torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shards_cover_every_question_once(world):
    parts = [runner.shard(16, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(16))


def test_unknown_methods_list_what_is_known():
    with pytest.raises(ValueError, match="'topk\\+magic' is not known; expected one of plain"):
        resolve("topk+magic")
    assert from_flags("none", "hsd").name == "plain"
    assert from_flags("chain", "published").lossy


def test_records_are_plain_ascii_json(tmp_path):
    assert evaluate(tmp_path, "--num-questions", "1") == 0
    (line,) = (tmp_path / "hybrid+hsd.jsonl").read_bytes().splitlines()
    assert line.isascii()
    steps = json.loads(line)["measured"][0]["steps"]
    assert {len(values) for values in steps.values()} == {len(steps["accepted"])}
