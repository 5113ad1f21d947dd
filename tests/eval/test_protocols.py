"""EAGLE's command lines and the protocols of papers: what they stand for, what is refused, what to type instead."""

import importlib
import json

import pytest

from eval import protocols
from eval.__main__ import main
from eval.flags import build_parser, chosen_methods
from tests.eval.fake import load
from tests.eval.helpers import records

QUESTIONS = [{"question_id": 81 + i, "category": "writing", "turns": [f"Say {i}.", "Again."]} for i in range(5)]
PATHS = ["--base-model-path", "target", "--ea-model-path", "head"]
EAGLE = ["--protocol", "eagle", "--bench-name", "mt_bench", *PATHS]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A question file in MT-Bench's layout, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return ["--question-file", "mine.jsonl", "--quiet"]


def settings_of(path):
    return json.loads(path.with_suffix(".meta.json").read_text())["settings"]


def applied(*more):
    options = build_parser().parse_args([*PATHS, "--answer-file", "x", *more])
    protocols.apply(options)
    return options


def test_eagle_s_script_line(tmp_path, asked, capsys):
    """Every old spelling on one line, with EAGLE's meaning."""
    line = "--model-id mine --total-token 40 --depth 7 --top-k 8 --question-begin 1 --question-end 3 --num-choices 1"
    more = [*line.split(), "--num-gpus-per-model", "1", "--num-gpus-total", "1", "--use_eagle3", *asked]
    assert main([*EAGLE, *more], load=load) == 0
    place = tmp_path / "mt_bench" / "mine-temperature-0.0.jsonl"
    assert [one["question_id"] for one in records(place)] == [82, 83]
    assert {one["model_id"] for one in records(place)} == {"mine-temperature-0.0"}
    found = settings_of(place)
    want = {"method": "topk+token", "nodes": 40, "depth": 8, "width": 8, "temperature": 0.0, "max_new_tokens": 512}
    assert {name: found[name] for name in want} == want
    assert found["system_prompt"].startswith("You are a helpful, respectful and honest assistant.")
    assert capsys.readouterr().err == ""


def test_eagle_s_defaults():
    options = applied("--protocol", "eagle", "--bench", "mt_bench")
    found = [getattr(options, name) for name in ("nodes", "depth", "width", "temperature", "max_new_tokens")]
    assert found == [60, 6, 10, 0.0, 512]
    assert [method.name for method, _ in chosen_methods(options)] == ["topk+token"]
    sets = {bench: applied("--protocol", "eagle", "--bench", bench).protocol for bench in ("gsm8k", "humaneval")}
    assert sets == {"gsm8k": "eagle80", "humaneval": "eagle80"}
    assert applied("--bench", "gsm8k").temperature == 1.0


def test_hsd_is_our_tree_as_well():
    options = applied("--protocol", "eagle", "--bench", "mt_bench", "--hsd")
    assert [method.name for method, _ in chosen_methods(options)] == ["hybrid+hsd"]


def test_what_the_line_states_wins():
    options = applied(
        "--protocol", "eagle", "--bench", "mt_bench", "--temperature", "1", "--tree", "hybrid", "--nodes", "auto"
    )
    assert (options.temperature, options.nodes, options.depth) == (1.0, "auto", None)
    assert [method.name for method, _ in chosen_methods(options)] == ["hybrid+hsd"]


def test_dspark_is_chains_of_seven_at_temperature_1():
    options = applied("--protocol", "dspark", "--bench", "gsm8k")
    found = [getattr(options, name) for name in ("nodes", "depth", "temperature", "max_new_tokens", "system_prompt")]
    assert found == [8, 7, 1.0, 2048, None]
    assert [method.name for method, _ in chosen_methods(options)] == ["chain+token"]


def test_several_methods_under_a_protocol():
    options = build_parser().parse_args([*EAGLE, "--methods", "plain", "topk+token", "hybrid+hsd", "--output", "x"])
    protocols.apply(options)
    assert [method.name for method, _ in chosen_methods(options)] == ["plain", "topk+token", "hybrid+hsd"]
    assert options.depth == 6


def test_a_token_limit_that_eagle_ignores_is_kept_and_said(asked, tmp_path, capsys):
    assert main([*EAGLE, "--max-new-token", "1024", "--answer-file", "a.jsonl", *asked], load=load) == 0
    assert settings_of(tmp_path / "a.jsonl")["max_new_tokens"] == 1024
    assert "EAGLE's scripts parse it and answer with 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-choices", "3"], "--num-choices 3: one answer per question and run; for 3 of each run it 3 times"),
        (["--num-gpus-per-model", "2"], "EagleModel.from_pretrained(..., device_map='auto')"),
        (["--num-gpus-total", "4"], "torchrun --nproc-per-node 4 -m eval"),
        (["--tree-choices", "mc_sim_7b_63"], "--tree-choices is parsed by EAGLE's scripts and does nothing there"),
        (["--load-in-8bit"], "--load-in-8bit is parsed by EAGLE's scripts and does nothing there; leave it out"),
        (["--hsd", "--tree", "topk"], "--hsd is --tree hybrid --verifier hsd; leave it out"),
        (["--hsd", "--methods", "plain"], "--hsd is --tree hybrid --verifier hsd; leave it out"),
        (["--question-begin", "5"], "--question-begin 5, --question-end None: none of the 5 of mine.jsonl"),
        (["--question-begin", "-1"], "--question-begin -1: expected a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_kept_is_refused(asked, tmp_path, more, message, capsys):
    assert main([*EAGLE, *asked, *more, "--answer-file", "a.jsonl"], load=load) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("script", "method"),
    [("gen_ea_answer_llama3chat", "topk+token"), ("gen_baseline_answer_llama3chat", "plain")],
)
def test_eagle_s_entries(asked, pair, tmp_path, script, method):
    """python -m eagle.evaluation.gen_ea_answer_llama3chat and eagle.evaluation.gen_baseline_answer_llama3chat."""
    command = importlib.import_module(f"eagle.evaluation.{script}").main
    paths = ["--base-model-path", str(pair / "target"), "--ea-model-path", str(pair / "head"), "--use_eagle3"]
    short = [
        "--question-end",
        "1",
        "--max-new-token",
        "8",
        "--total-token",
        "8",
        "--depth",
        "2",
        "--top-k",
        "3",
        "--system-prompt",
        "Be brief.",
    ]
    assert command([*paths, "--model-id", "mine", *short, *asked]) == 0
    place = tmp_path / "mt_bench" / "mine-temperature-0.0.jsonl"
    assert [len(one["choices"][0]["turns"]) for one in records(place)] == [2]
    assert settings_of(place)["method"] == method
