"""The documents agree with the measurements, the commands they name exist, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.reports.embed import MARKED, embedded

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_reports(path):
    text = path.read_text(encoding="utf-8")
    assert embedded(text) == text


def test_the_readme_has_a_measured_table():
    assert "gsm8k-t1" in [match["name"] for match in MARKED.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    for script in set(re.findall(r"bash (scripts/\w+\.sh)", text)):
        assert (ROOT / script).is_file(), script
    for module in set(re.findall(r"python -m ((?:eval|eagle|hsd)[\w.]*\w)", text)):
        base = ROOT / module.replace(".", "/")
        assert base.with_suffix(".py").is_file() or (base / "__main__.py").is_file(), module


@pytest.mark.parametrize("module", ["eval", "eval.reports", "eval.speed.step_time", "eval.reports.embed", "hsd.audit"])
def test_help_teaches(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout) > 300


def test_the_readmes_python_runs(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(code.replace("checkpoints/", f"{ROOT}/checkpoints/"), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
