"""The command line: what it refuses, what it teaches, and one real run of the real engine from disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.__main__ import build_parser, main
from tests.eval.fake import load
from tests.eval.helpers import arguments, records

ROOT = Path(__file__).parents[2]
ONE = ["--bench", "gsm8k", "--protocol", "sample", "--base-model-path", "target", "--ea-model-path", "head", "--quiet"]


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "no place for the answers; pass --answer-file"),
        (["--methods", "plain"], "--methods needs --output DIR"),
        (["--methods", "plain", "--tree", "topk", "--output", "x"], "leave --tree, --verifier and --answer-file out"),
        (["--answer-file", "x", "--tree", "topk", "--verifier", "block"], "'topk+block' is not known"),
        (["--answer-file", "x", "--temperature", "-1"], "--temperature -1.0: expected at least 0"),
        (["--answer-file", "x", "--top-p", "2"], "--top-p 2.0: expected between 0 and 1"),
        (["--answer-file", "x", "--max-new-tokens", "0"], "--max-new-tokens 0: expected at least 1"),
        (["--answer-file", "x", "--num-questions", "99"], "--num-questions 99"),
        (["--methods", "transformers-assisted", "--output", "x"], "pass --draft-model-path"),
    ],
)
def test_contradictions_are_explained(more, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*ONE, *more], load=load) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_drafting_needs_a_drafter(capsys):
    without = [part for part in ONE if part not in ("--ea-model-path", "head")]
    assert main([*without, "--answer-file", "x"], load=load) == 2
    assert "'hybrid+hsd' drafts and no drafter was given" in capsys.readouterr().err


def test_eagle_s_flag_names():
    options = build_parser().parse_args(
        "--bench-name mt_bench --base-model-path B --ea-model-path H --total-token 60 --depth 7 --top-k 10 "
        "--temperature 0 --max-new-token 1024 --answer-file F".split()
    )
    assert (options.bench, options.nodes, options.depth, options.width) == ("mt_bench", 60, 7, 10)
    assert options.max_new_tokens == 1024


def test_one_method_one_file(tmp_path, capsys):
    place = tmp_path / "answers" / "one.jsonl"
    assert main([*ONE, "--tree", "topk", "--verifier", "token", "--answer-file", str(place)], load=load) == 0
    assert len(records(place)) == 16
    meta = json.loads((tmp_path / "answers" / "one.meta.json").read_text())
    assert meta["settings"]["method"] == "topk+token" and meta["settings"]["template"].startswith("tokenizer:")
    assert meta["sessions"][0]["hardware"]["threads"] == torch.get_num_threads()
    assert "python -m eval.reports" in capsys.readouterr().out


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
            methods=("plain", "transformers", "topk+token", "hybrid+hsd", "chain+block", "multi+hsd"),
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
        assert row["n"] == 2 and not row["errors"], row["errors"]
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
    assert rows["transformers-assisted"]["tokens"] == 17 and not rows["transformers-assisted"]["errors"]
