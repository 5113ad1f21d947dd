"""The command line: what it refuses, what it teaches, and one real run of the real engine from disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.__main__ import main
from eval.flags import build_parser
from eval.run import load_models
from eval.run.methods import SAMPLING, Decoding
from tests.eval.fake import FakeEngine, load
from tests.eval.helpers import arguments, records

ROOT = Path(__file__).parents[2]
ONE = ["--bench", "gsm8k", "--protocol", "sample", "--base-model-path", "target", "--ea-model-path", "head", "--quiet"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no place for the answers; pass --answer-file"),
        (["--methods", "plain"], "--methods needs --output DIR"),
        (["--methods", "plain", "--tree", "topk", "--output", "x"], "leave --tree, --verifier and --answer-file out"),
        (["--answer-file", "x", "--tree", "topk", "--verifier", "block"], "'topk+block' is not known"),
        (["--answer-file", "x", "--tree", "auto", "--verifier", "token"], "'auto+token' is not known"),
        (["--answer-file", "x", "--nodes", "auto", "--depth", "3"], "--depth 3: --nodes auto chooses the depth"),
        (["--answer-file", "x", "--temperature", "-1"], "--temperature -1: expected a number, 0 or more"),
        (["--answer-file", "x", "--top-p", "2"], "--top-p 2: expected a number from 0 to 1"),
        (["--answer-file", "x", "--max-new-tokens", "0"], "--max-new-tokens 0: expected a whole number, 1 or more"),
        (["--answer-file", "x", "--num-questions", "99"], "--num-questions 99"),
        (["--methods", "transformers-assisted", "--output", "x"], "pass --draft-model-path"),
    ],
)
def test_contradictions_are_explained(more, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*ONE, *more], load=load) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rank", "world"), [("x", "1"), ("5", "2"), ("-1", "2"), ("0", "0"), ("1", "1")])
def test_ranks_that_cannot_be(rank, world, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main([*ONE, "--answer-file", "x"], load=load) == 2
    assert "RANK, LOCAL_RANK, WORLD_SIZE are" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_question_file_is_not_the_default(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without = [part for part in ONE if part not in ("--protocol", "sample")]
    assert main([*without, "--answer-file", "x", "--question-file", ""], load=load) == 2
    assert "question file '' does not exist" in capsys.readouterr().err


def test_drafting_needs_a_drafter(capsys):
    without = [part for part in ONE if part not in ("--ea-model-path", "head")]
    assert main([*without, "--answer-file", "x"], load=load) == 2
    assert "'hybrid+hsd' drafts and no drafter was given" in capsys.readouterr().err


def test_eagle_s_flag_names():
    options = build_parser().parse_args(
        [
            "--bench-name",
            "mt_bench",
            "--base-model-path",
            "B",
            "--ea-model-path",
            "H",
            "--total-token",
            "60",
            "--depth",
            "7",
            "--top-k",
            "10",
            "--temperature",
            "0",
            "--max-new-token",
            "1024",
            "--answer-file",
            "F",
        ]
    )
    assert (options.bench, options.nodes, options.depth, options.width) == ("mt_bench", 60, 7, 10)
    assert options.max_new_tokens == 1024


def test_auto_is_a_method_of_its_own(tmp_path):
    place = tmp_path / "auto.jsonl"
    assert main([*ONE, "--tree", "auto", "--num-questions", "1", "--answer-file", str(place)], load=load) == 0
    assert json.loads((tmp_path / "auto.meta.json").read_text())["settings"]["method"] == "auto+hsd"
    decoding = Decoding(nodes="auto", width=4)
    assert decoding.with_defaults("cpu").tree_options("topk") == {"nodes": "auto"}
    assert Decoding(nodes=16).tree_options("auto") == {}


def test_one_method_one_file(tmp_path, capsys):
    place = tmp_path / "answers" / "one.jsonl"
    assert main([*ONE, "--tree", "topk", "--verifier", "token", "--answer-file", str(place)], load=load) == 0
    assert len(records(place)) == 16
    meta = json.loads((tmp_path / "answers" / "one.meta.json").read_text())
    assert meta["settings"]["method"] == "topk+token"
    assert meta["settings"]["template"].startswith("tokenizer:")
    assert meta["sessions"][0]["hardware"]["threads"] == torch.get_num_threads()
    assert "python -m eval.report" in capsys.readouterr().out


def test_the_real_engine_from_disk(pair, tmp_path):
    """Every tree at temperature 0, through a subprocess: same tokens as plain decoding and as transformers."""
    command = [
        part if part not in ("target", "head") else str(pair / part)
        for part in arguments(
            tmp_path,
            "--temperature",
            "0",
            "--num-questions",
            "2",
            "--max-new-tokens",
            "12",
            "--total-token",
            "16",
            "--depth",
            "3",
            "--dtype",
            "float32",
            methods=(
                "plain",
                "transformers",
                "transformers-lookup",
                "topk+token",
                "hybrid+hsd",
                "chain+block",
                "multi+hsd",
            ),
        )
    ]
    quiet_machine = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "eval", *command],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **quiet_machine},
    )
    assert done.returncode == 0, done.stderr
    (section,) = json.loads((tmp_path / "report.json").read_text())["sections"]
    for row in section["rows"]:
        assert not row["errors"], row["errors"]
        assert row["n"] == 2
        assert row["method"] == "plain" or row["same_as_plain"] == [2, 2], row["method"]
    assert "| hybrid+hsd |" in done.stdout


def test_an_ordinary_draft_model(pair, tmp_path):
    """The target as its own draft model: every draft is accepted; assisted generation runs beside it."""
    command = [
        "--bench",
        "gsm8k",
        "--protocol",
        "sample",
        "--num-questions",
        "1",
        "--base-model-path",
        str(pair / "target"),
        "--draft-model-path",
        str(pair / "target"),
        "--methods",
        "chain+block",
        "transformers-assisted",
        "--output",
        str(tmp_path),
        "--max-new-tokens",
        "17",
        "--depth",
        "3",
        "--dtype",
        "float32",
        "--quiet",
    ]
    assert main(command) == 0
    (section,) = json.loads((tmp_path / "report.json").read_text())["sections"]
    rows = {row["method"]: row for row in section["rows"]}
    assert rows["chain+block"]["tau"][0] == pytest.approx(4.0)
    assert rows["transformers-assisted"]["tokens"] == 17
    assert not rows["transformers-assisted"]["errors"]


def test_a_model_s_own_sampling_file_decides_nothing(pair, tmp_path):
    """generation_config.json with top_k 1 and a penalty beside the weights: the answers are those without it."""
    folder = tmp_path / "target"
    shutil.copytree(pair / "target", folder)
    place = folder / "generation_config.json"
    strange = {"do_sample": True, "temperature": 0.2, "top_k": 1, "top_p": 0.3, "min_p": 0.5, "repetition_penalty": 5.0}
    place.write_text(json.dumps({**json.loads(place.read_text()), **strange, "no_repeat_ngram_size": 2}))

    def answers(target, output, temperature):
        flags = [
            part if part not in ("target", "head") else str({"target": target, "head": pair / "head"}[part])
            for part in arguments(
                output,
                "--temperature",
                temperature,
                "--num-questions",
                "1",
                "--max-new-tokens",
                "12",
                "--nodes",
                "8",
                "--depth",
                "3",
                "--dtype",
                "float32",
                methods=("plain", "transformers", "transformers-lookup", "hybrid+hsd"),
            )
        ]
        assert main(flags) == 0
        return {path.name: [turn["tokens"] for turn in records(path)[0]["measured"]] for path in output.glob("*.jsonl")}

    for temperature in ("0", "1"):
        assert answers(pair / "target", tmp_path / f"own{temperature}", temperature) == answers(
            folder, tmp_path / f"strange{temperature}", temperature
        )


def test_every_sampling_setting_is_recorded(tmp_path):
    place = tmp_path / "one.jsonl"
    given = ["--top-p", "0.9", "--sampling-top-k", "20", "--min-p", "0.05", "--repetition-penalty", "1.1"]
    assert main([*ONE, "--tree", "topk", "--verifier", "token", *given, "--answer-file", str(place)], load=load) == 0
    written = json.loads((tmp_path / "one.meta.json").read_text())["settings"]
    found = [
        written[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "lookup_tokens")
    ]
    assert found == [1.0, 0.9, 20, 0.05, 1.1, 10]


def test_settings_reach_the_engine(tmp_path):
    seen = []

    class Engine(FakeEngine):
        def generate(self, *args, **settings):
            seen.append({name: settings[name] for name in SAMPLING})
            return super().generate(*args, **settings)

    given = ["--min-p", "0.05", "--repetition-penalty", "1.1", "--num-questions", "1"]
    command = [*ONE, "--tree", "none", *given, "--answer-file", str(tmp_path / "x.jsonl")]
    assert main(command, load=lambda *_, **__: Engine()) == 0
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.1}
    assert seen == [neutral, neutral]


def test_what_is_not_given_is_what_generate_takes(pair, tmp_path):
    """Written down, too: the dtype that "auto" stands for, and the size of the device's trees."""
    flags = ["--bench", "gsm8k", "--protocol", "sample", "--num-questions", "1", "--max-new-tokens", "3", "--quiet"]
    flags += ["--base-model-path", str(pair / "target"), "--ea-model-path", str(pair / "head")]
    assert main([*flags, "--answer-file", str(tmp_path / "x.jsonl")]) == 0
    written = json.loads((tmp_path / "x.meta.json").read_text())["settings"]
    assert written["dtype"] == load_models.auto_dtype(str(pair / "target"), "cpu")
    assert (written["nodes"], written["depth"]) == (8, 4)
    assert Decoding().with_defaults("cuda")[6:8] == (60, 7)
    assert Decoding(nodes=16).with_defaults("cpu")[6:8] == (16, 7)
