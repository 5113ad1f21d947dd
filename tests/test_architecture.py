"""Dependencies point one way: eval -> eagle -> hsd -> torch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"hsd": set(), "eagle": {"hsd"}, "eval": {"hsd", "eagle"}}
EVERY_LAYER = {"hsd", "eagle", "eval", "scripts", "tests", "benchmarks"}
HSD_TOP_LEVEL = {"torch"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_no_upward_imports(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        upward = imports(path) & EVERY_LAYER - MAY_IMPORT[layer] - {layer}
        assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}"


def test_hsd_needs_torch_and_nothing_else():
    import sys

    for path in (ROOT / "hsd").glob("*.py"):
        others = imports(path, top_level_only=True) - HSD_TOP_LEVEL - {"hsd"} - set(sys.stdlib_module_names)
        assert not others, f"{path.relative_to(ROOT)} imports {sorted(others)}"


def test_the_source_never_imports_the_slow_reference():
    for layer in MAY_IMPORT:
        for path in (ROOT / layer).rglob("*.py"):
            assert "tests.reference" not in path.read_text(encoding="utf-8")
