"""Imports point one way, between the packages and between the rooms of a package; tests mirror the packages.

scripts -> eval -> eagle -> hsd -> torch
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"hsd": set(), "eagle": {"hsd"}, "eval": {"hsd", "eagle"}}
EVERY_LAYER = {"hsd", "eagle", "eval", "scripts", "tests"}

# What everything stands on and which stands on nothing of ours; any room of `eagle` may import it.
BASICS = {"eagle.chat_template", "eagle.command", "eagle.digests", "eagle.files", "eagle.jsonl", "eagle.threads"}

# A room is a folder of a package, or a file directly in it; the longest name that fits counts. A room may import
# itself, the rooms named here, and whatever MAY_IMPORT allows of the lower packages.
ROOMS = {
    # the mathematics: a tree and its checks, what verification returns, the rules, the two entry points
    "hsd.checks": {"hsd.layout", "hsd.tree"},
    "hsd.layout": set(),
    "hsd.native": {"hsd.outcome", "hsd.tree"},
    "hsd.outcome": set(),
    "hsd.sampling": {"hsd.native"},
    "hsd.topology": set(),
    "hsd.tree": {"hsd.layout", "hsd.topology"},
    "hsd.verifiers": {"hsd.layout", "hsd.outcome", "hsd.topology", "hsd.tree"},
    "hsd.verify": {"hsd.checks", "hsd.native", "hsd.outcome", "hsd.sampling", "hsd.tree", "hsd.verifiers"},
    "hsd.audit": {"hsd"},
    # drafting and decoding, from the weights up to what people call
    "eagle.nn": set(),
    "eagle.drafters": {"eagle.nn"},
    "eagle.trees": set(),
    "eagle.checkpoints": {"eagle.nn"},
    "eagle.engine": {"eagle.drafters", "eagle.nn", "eagle.trees"},
    "eagle.autotune": {"eagle.checkpoints", "eagle.engine", "eagle.nn", "eagle.trees"},
    "eagle.api": {"eagle.autotune", "eagle.checkpoints", "eagle.drafters", "eagle.engine", "eagle.nn", "eagle.trees"},
    "eagle.model": {"eagle.api", "eagle.autotune"},
    # training: a session samples the answers it learns from; evaluation drafts as users do
    "eagle.train": {"eagle.checkpoints", "eagle.engine", "eagle.nn", "eagle.train.evaluation", "eagle.trees"},
    "eagle.train.evaluation": {"eagle.api", "eagle.checkpoints", "eagle.nn", "eagle.train"},
    "eagle.native": {"eagle.nn", "eagle.trees"},
    "eagle.convert": {"eagle.checkpoints", "eagle.nn"},
    "eagle.calibrate": {"eagle.api", "eagle.autotune", "eagle.checkpoints", "eagle.train"},
    # where people talk to a model
    "eagle.serve": {"eagle.api", "eagle.autotune", "eagle.checkpoints", "eagle.engine", "eagle.trees"},
    "eagle.chat": {"eagle.serve"},
    "eagle.cli": set(),
    "eagle.evaluation": {"eagle.cli"},  # EAGLE's scripts: start the command `eval` by its name
    # benchmarks
    "eval.provenance": set(),
    "eval.engines": {"eval.provenance", "eval.questions", "eval.report", "eval.run"},
    "eval.questions": {"eval.provenance"},
    "eval.run": {"eval.questions"},
    "eval.report": {"eval.questions", "eval.run"},
    "eval.measure": {"eval.provenance", "eval.questions", "eval.report", "eval.run"},
    "eval.reports": {"eval.report"},
    "eval.accuracy": {"eval.provenance", "eval.questions", "eval.report", "eval.run"},
    "eval.flags": {"eval.protocols", "eval.questions", "eval.run"},
    "eval.protocols": set(),
}
# The trainer evaluates, and evaluation reads training's settings and data.
MUTUAL = {("eagle.train.evaluation", "eagle.train")}
TESTED_IN = {  # folders whose tests lie elsewhere
    "eagle/model": "eagle/api",  # EAGLE's import path
    "eagle/evaluation": "eval",  # they are command lines of eval
    "eagle/drafters": "eagle/trees",  # a drafter is tested by the trees it gives
    "hsd/audit": "hsd",
    "hsd/native": "hsd",
    "hsd/verifiers": "hsd",  # through hsd.verify, all rules by the same tests
}
ABOVE_ALL = {"eagle", "eval", "hsd", "eval.__main__", "eval.demo"}  # what a package exports, and its commands: any room


def name_of(path: Path) -> str:
    """Dotted name of a module: hsd/audit/__init__.py is hsd.audit."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, also inside functions; `from hsd import verify` counts as hsd.verify
    where that is a module.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno}: write the import in full, not relative"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if is_module(name)}
            found |= modules or {node.module}
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(name: str) -> str:
    """The room a module lies in; packages themselves and their commands are rooms of their own."""
    if name in ABOVE_ALL | BASICS:
        return name
    inside = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    assert inside, f"{name} lies in no room: add it to ROOMS"
    return max(inside, key=len)


def source(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_upward_imports(package):
    for path in source(package):
        packages = {name.split(".")[0] for name in imports(path)}
        upward = packages & EVERY_LAYER - MAY_IMPORT[package] - {package}
        assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}"


def imported_by_rooms(package: str) -> dict[str, dict[str, str]]:
    """Room -> the rooms of the package that it imports, each with a file that does."""
    found: dict[str, dict[str, str]] = {}
    for path in source(package):
        room = room_of(name_of(path))
        if room not in ABOVE_ALL | BASICS:
            used = {room_of(name) for name in imports(path) if name.split(".")[0] == package} - {room} - BASICS
            found.setdefault(room, {}).update(dict.fromkeys(used, str(path.relative_to(ROOT))))
    return found


def test_the_basics_stand_on_nothing_else():
    for name in BASICS:
        used = imports(ROOT / f"{name.replace('.', '/')}.py")
        assert {one for one in used if one.split(".")[0] in EVERY_LAYER} <= BASICS | {"eagle"}, name


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_rooms_import_what_the_floor_plan_allows(package):
    for room, used in imported_by_rooms(package).items():
        for one, path in used.items():
            allowed = any(one == may or one.startswith(f"{may}.") for may in ROOMS[room])
            assert allowed, f"{path} imports {one}; {room} may not"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_floor_plan_allows_nothing_that_is_not_imported(package):
    for room, used in imported_by_rooms(package).items():
        unused = {may for may in ROOMS[room] if not any(one == may or one.startswith(f"{may}.") for one in used)}
        assert not unused, f"{room} does not import {sorted(unused)}: take them out of ROOMS"


def test_the_floor_plan_has_no_cycle_between_rooms():
    above = {room: below - {other for one, other in MUTUAL if one == room} for room, below in ROOMS.items()}
    above["hsd.audit"] = set()  # imports the package `hsd`, which none of the other rooms does
    graphlib.TopologicalSorter(above).prepare()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_floor_plan_names_rooms_that_exist(package):
    gone = {room for room in ROOMS if room.split(".")[0] == package and not is_module(room)}
    assert not gone


def test_hsd_needs_torch_and_nothing_else():
    for path in (ROOT / "hsd").glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        top = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        top |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
        others = {name.split(".")[0] for name in top} - {"torch", "hsd"} - set(sys.stdlib_module_names)
        assert not others, f"{path.relative_to(ROOT)} imports {sorted(others)}"


def test_tests_mirror_the_packages():
    """A folder of tests has the name of a folder of the source; a folder of the source has tests of its own."""
    folders = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("__init__.py")}
    folders = {path.parent for path in folders} - {Path(), Path("golden"), Path("reference")}
    unmatched = {str(path) for path in folders if not (ROOT / path).is_dir()}
    assert not unmatched
    rooms = {str(path.parent.relative_to(ROOT)) for package in MAY_IMPORT for path in (ROOT / package).glob("*/*.py")}
    tested = {str(path.parent.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    assert rooms - tested == set(TESTED_IN), "give these folders tests, or name in TESTED_IN where they are tested"
    assert set(TESTED_IN.values()) <= tested
