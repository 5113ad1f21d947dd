"""pyproject.toml, the pinned lists and the imports of the source agree; the built wheel works outside the checkout."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import eagle

ROOT = Path(__file__).parents[1]
PACKAGES = ("hsd", "eagle", "eval")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED_EXTRAS = ("eval", "train", "serve", "fetch")
DISTRIBUTIONS = {"fastchat": "fschat", "flash_attn": "flash-attn"}  # import names that are not the distribution's name

# What a room may import beside the core, at any depth of its files; a file counts to its longest prefix.
EXTRAS_OF_ROOMS = {
    "hsd": (),
    "hsd/audit": ("eval",),
    "eagle": ("gpu",),
    "eagle/checkpoints": ("fetch",),
    "eagle/train": ("train",),
    "eagle/serve": ("serve",),
    "eval": ("eval",),
    "eval/engines": ("eval", "fetch"),
}
DATA_FILES = {
    "hsd/native/decide.cpp",
    "hsd/py.typed",
    "eagle/py.typed",
    "eagle/nn/native/amx.h",
    "eagle/nn/native/few_rows.cpp",
    "eagle/nn/native/kernels.h",
    "eagle/serve/page.html",
    "eagle/trees/level.cpp",
    "eval/py.typed",
    "eval/questions/sample.jsonl",
    "eval/report/published.json",
}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name, comments and references to the project's own extras left out."""
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in parsed if one.name != PROJECT["name"]}


def ranges(*extras: str) -> dict[str, Requirement]:
    """The ranges of pyproject.toml: the core and the named extras."""
    optional = PROJECT["optional-dependencies"]
    return requirements(PROJECT["dependencies"] + [line for extra in extras for line in optional[extra]])


def pins(name: str) -> dict[str, Requirement]:
    return requirements((ROOT / name).read_text(encoding="utf-8").splitlines())


def third_party_imports(path: Path) -> set[str]:
    """Canonical names of the distributions a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    found -= {*PACKAGES, "tests", *sys.stdlib_module_names}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in found}


def room(path: Path) -> str:
    inside = [name for name in EXTRAS_OF_ROOMS if path.is_relative_to(ROOT / name)]
    return max(inside, key=len)


@pytest.mark.parametrize(
    ("pinned", "extras"), [("requirements.txt", PINNED_EXTRAS), ("requirements-dev.txt", ("dev",))], ids=["run", "dev"]
)
def test_pins_and_ranges_agree(pinned, extras):
    allowed = ranges(*extras) if pinned == "requirements.txt" else requirements(PROJECT["optional-dependencies"]["dev"])
    exact = pins(pinned)
    assert set(exact) == set(allowed)
    for name, pin in exact.items():
        [specifier] = pin.specifier
        assert specifier.operator == "==", f"{name} is not pinned exactly: {pin}"
        assert allowed[name].specifier.contains(specifier.version), f"{pin} is outside {allowed[name]}"


def test_the_gpu_list_is_the_gpu_extra():
    assert pins("requirements-gpu.txt") == requirements(PROJECT["optional-dependencies"]["gpu"])


def test_a_distribution_has_one_range():
    seen = {}
    for extra in PROJECT["optional-dependencies"]:
        for name, one in ranges(extra).items():
            assert seen.setdefault(name, one) == one, f"{name}: {seen[name]} and {one}"


OTHER_ENGINES = {"vllm_run.py", "llama_cpp_run.py"}  # run by interpreters of their own, see scripts/engines.sh


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package):
    for path in (ROOT / package).rglob("*.py"):
        if path.name in OTHER_ENGINES:
            continue
        undeclared = third_party_imports(path) - set(ranges(*EXTRAS_OF_ROOMS[room(path)]))
        assert not undeclared, f"{path.relative_to(ROOT)} imports {sorted(undeclared)}; declare it in pyproject.toml"


def test_declared_dependencies_are_imported():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    imported = set().union(*map(third_party_imports, files))
    unused = set(ranges("eval", "train", "gpu")) - imported
    assert not unused, f"pyproject.toml declares {sorted(unused)}, which nothing imports"


@pytest.mark.parametrize(
    ("file", "line"), [("CITATION.cff", "version: {}"), ("CHANGELOG.md", "## [{}]")], ids=["citation", "changelog"]
)
def test_what_names_the_version_names_this_one(file, line):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert any(one.startswith(line.format(eagle.__version__)) for one in lines)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the tracked source, built without network and without leaving a build folder in the checkout."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), str(source))
    [built] = work.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_source_and_its_data_files(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == source
    assert {name for name in inside if not name.endswith(".py")} == DATA_FILES


OUTSIDE = """
import importlib.metadata, sys, torch, hsd, eagle, eval.__main__, eval.questions.benchmarks, eval.report.released
from pathlib import Path
site, demo = map(Path, sys.argv[1:])
for package in (hsd, eagle, eval):
    assert Path(package.__file__).is_relative_to(site), package.__file__
assert (Path(eval.questions.benchmarks.__file__).parent / "sample.jsonl").is_file()
assert (Path(eval.report.released.__file__).parent / "published.json").is_file()
assert importlib.metadata.version("eagle3-hsd") == eagle.__version__
model = eagle.EagleModel.from_pretrained(demo / "target", demo / "eagle3")
ids = model.tokenizer("Three boxes hold 4 pencils each.", return_tensors="pt").input_ids
out = model.generate(ids, max_new_tokens=8, temperature=0.0)
assert ids.shape[1] < out.shape[1] <= ids.shape[1] + 8 and torch.equal(out[:, : ids.shape[1]], ids), out
"""


def test_the_installed_wheel_generates_outside_the_checkout(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--target", str(site), str(wheel))
    command = [sys.executable, "-c", OUTSIDE, str(site), str(ROOT / "checkpoints" / "demo")]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
