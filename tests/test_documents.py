"""The documents agree with the measurements, the files they name exist, links lead somewhere."""

import re
from pathlib import Path

import pytest

from eval.report.embed import MARKED, embedded

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "checkpoints" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_reports(path):
    text = path.read_text(encoding="utf-8")
    assert embedded(text) == text


def test_the_readme_is_short_and_has_a_measured_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert "qwen05-gsm8k-t1" in [match["name"] for match in MARKED.finditer(text)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", [one for one in DOCUMENTS if one.name != "LOG.md"], ids=lambda path: path.name)
def test_named_files_exist(path):
    """Files of the source and scripts; commands and their flags are looked at in test_commands.py."""
    text = path.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<![\w/])(?:hsd|eagle|eval|tests)/[\w/]*\.\w+|scripts/\w+\.sh", text)):
        assert "NAME" in name or (ROOT / name).is_file(), f"{path.name} names {name}"


@pytest.mark.parametrize(
    "name", ["README.md", "docs/tutorials/first-answer.md", "docs/migration.md", "docs/transformers.md"]
)
def test_python_in_documents_runs(name):
    """Blocks of one document run one after the other, as they are read."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace("checkpoints/", f"{ROOT}/checkpoints/")
    exec(compile(code, name, "exec"), {})
