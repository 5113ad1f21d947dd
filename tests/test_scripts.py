"""The shell scripts name methods and flags that exist, and parse."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eagle.trees import TREES, TreeSettings
from eval import accuracy
from eval.flags import build_parser, chosen_methods
from eval.measure import paths
from eval.questions.benchmarks import benchmark
from eval.run.methods import METHODS

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    ROOT / "scripts" / f"{name}.sh"
    for name in ("setup", "demo", "test", "gsm8k", "mt_bench", "paper_tables", "get_checkpoints", "docs")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_parses_and_says_what_it_is(script):
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.split("set -euo pipefail")[0].count("#") >= 5


@pytest.mark.parametrize(
    "script",
    [*(path for path in SCRIPTS if path.stem not in ("setup", "test", "docs")), ROOT / "scripts" / "pair.sh"],
    ids=lambda path: path.stem,
)
def test_methods_and_flags_exist(script):
    code = "\n".join(line.split(" #")[0] for line in script.read_text().splitlines() if not line.startswith("#"))
    named = set(re.findall(r"\b(?:topk|hybrid|chain|multi)\+\w+", code))
    assert named <= set(METHODS)
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    others = {
        "--demo",
        "--draft",
        "--source",
        "--version",
        "--quiet",
        "--disable-pip-version-check",
        "--system-site-packages",
    }
    others |= {flag for action in paths.build_parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", code)) <= flags | others


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.stem)
def test_help_is_the_header(script, tmp_path):
    done = subprocess.run(["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    header = itertools.takewhile(lambda line: line.startswith("#"), script.read_text().splitlines())
    assert done.stdout.splitlines() == [line[2:] for line in header if not line.startswith("#!")]


@pytest.mark.parametrize("script", ["train_head", "train_demo", "gpu_check"])
def test_missing_arguments_show_the_header(script, tmp_path):
    done = subprocess.run(["bash", ROOT / "scripts" / f"{script}.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"bash scripts/{script}.sh" in done.stderr


def calls_of(script, arguments, tmp_path):
    """The calls of a script, word by word: a stand-in for the interpreter writes down what it was called with."""
    fake = tmp_path / "venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLS"\n')
    fake.chmod(0o755)
    sums = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    (tmp_path / "venv" / f"installed-{sums}").touch()
    calls = tmp_path / "calls"
    environment = {"PATH": os.environ["PATH"], "HSD_VENV": str(tmp_path / "venv"), "CALLS": str(calls)}
    subprocess.run(["bash", str(ROOT / "scripts" / f"{script}.sh"), *arguments], check=True, env=environment)
    return [line.removeprefix("-m ").split() for line in calls.read_text().splitlines()]


def test_every_call_of_the_paper_s_tables_parses(tmp_path):
    lines = calls_of("paper_tables", ["--target", "a-target", "--draft", "a-draft", "--seed", "3"], tmp_path)
    assert [line[1:] for line in lines if line[0] == "eagle.checkpoints.fetch"] == [["a-target"], ["a-draft"]]
    states = [paths.build_parser().parse_args(line[1:]) for line in lines if line[0] == "eval.measure.paths"]
    assert sorted(sum((options.temperatures for options in states), [])) == [0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    (judged,) = [accuracy.build_parser().parse_args(line[1:]) for line in lines if line[0] == "eval.accuracy"]
    assert set(judged.methods) <= set(METHODS) and "chain+published" in judged.methods
    runs = [build_parser().parse_args(line[1:]) for line in lines if line[0] == "eval"]
    assert {method for options in runs for method in options.methods} <= set(METHODS)
    assert len({options.output for options in runs}) == len(runs) == 4
    assert all((options.base_model_path, options.draft_model_path) == ("a-target", "a-draft") for options in runs)
    assert all(options.seed == 3 for options in runs)


@pytest.mark.parametrize("script", ["gsm8k", "mt_bench"])
@pytest.mark.parametrize(
    ("given", "card"),
    [
        pytest.param(["--pair", "smollm2-135m"], [0.2], id="pair"),
        pytest.param(["--pair", "llama-3.1-8b", "--num-questions", "2"], [0.6], id="official pair"),
        pytest.param(["--demo"], [], id="demo"),
        pytest.param([], [0.6], id="default"),
        pytest.param(["T", "H"], [], id="paths"),
    ],
)
def test_every_call_of_the_benchmark_scripts_parses(script, given, card, tmp_path):
    lines = calls_of(script, given, tmp_path)
    fetched = [line[1:] for line in lines if line[0] == "eagle.checkpoints.fetch"]
    name = {"--pair": given[1:2], "--demo": ["demo"]}.get(given[0] if given else "", [])
    assert fetched == ([name] if name else [])
    runs = [build_parser().parse_args(line[1:]) for line in lines if line[0] == "eval"]
    assert [options.temperature for options in runs] == [0.0, 1.0, *card]
    assert len({options.output for options in runs}) == len(runs)
    assert {"plain", "transformers", "topk+hsd", "chain+hsd", "hybrid+token", "hybrid+hsd"} <= set(runs[1].methods)
    for options in runs:
        assert set(options.methods) <= set(METHODS)
        assert [options.pair] == name or (options.pair is None and options.base_model_path and options.ea_model_path)


@pytest.mark.parametrize("name", ["reproduction", "migration", "tutorials/own-benchmark"])
def test_the_documents_commands_parse(name):
    text = (ROOT / "docs" / f"{name}.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python -m eval (--bench [^`\n]+)", text)
    assert commands
    for command in commands:
        options = build_parser().parse_args(command.split())
        assert options.protocol in {None, *benchmark(options.bench).protocols}
        for method, _ in chosen_methods(options):
            builder = TREES.get(method.tree)
            if builder and options.depth:
                builder.grown(TreeSettings(options.nodes or 60, options.depth, options.width))
