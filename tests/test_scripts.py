"""The shell scripts name methods and flags that exist, and parse."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eval.__main__ import build_parser
from eval.runs.methods import METHODS

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    ROOT / "scripts" / f"{name}.sh"
    for name in ("setup", "demo", "test", "gsm8k", "mt_bench", "paper_tables", "get_checkpoints")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_parses_and_says_what_it_is(script):
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.split("set -euo pipefail")[0].count("#") >= 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_methods_and_flags_exist(script):
    code = "\n".join(line.split(" #")[0] for line in script.read_text().splitlines() if not line.startswith("#"))
    named = set(re.findall(r"\b(?:topk|hybrid|chain|multi)\+\w+", code))
    assert named <= set(METHODS)
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    others = {
        "--demo",
        "--version",
        "--quiet",
        "--disable-pip-version-check",
        "--system-site-packages",
        "--revision",
        "--local-dir",
        "--exclude",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", code)) <= flags | others


def test_the_documents_commands_parse():
    text = (ROOT / "docs" / "reproduction.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"python -m eval (--bench [^`\n]+)", text)
    assert commands
    for command in commands:
        options = build_parser().parse_args(command.split())
        assert not options.methods or set(options.methods) <= set(METHODS)
