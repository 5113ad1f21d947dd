"""The examples and the notebook run as their reader would run them."""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import hsd

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "train_a_head.ipynb"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_says_what_one_learns_and_runs(path, tmp_path, monkeypatch, capsys):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert "What you learn: " in text and f"python -m examples.{path.stem}" in text
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [str(path), str(tmp_path / "tree.png")])
    with mock.patch.dict(hsd.VERIFIERS):
        runpy.run_module(f"examples.{path.stem}", run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_notebook_trains_chats_and_draws(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "commit it without outputs"
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in code), encoding="utf-8")
    settings = {"OMP_NUM_THREADS": "1", "WORK": str(tmp_path / "work"), "PROMPTS": "8", "STEPS": "2"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT / "examples",
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" calls\n") == 2
    assert (tmp_path / "work" / "tree.png").stat().st_size > 1000
