"""The `eagle` command."""

import importlib
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import eagle
from eagle import cli
from eagle.serve import options
from eagle.trees import TREES
from hsd.verifiers import VERIFIERS

ROOT = Path(__file__).parents[2]
START = (
    "import sys; from eagle.cli import main; code = main({argv}); "
    "assert not HEAVY & set(sys.modules), 'heavy'; sys.exit(code)"
)
HEAVY = "{'torch', 'transformers', 'fastapi'}"


def started(*argv: str, light: bool = True) -> subprocess.CompletedProcess:
    code = START.replace("{argv}", repr(list(argv))).replace("HEAVY", HEAVY if light else "set()")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_it_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"eagle": "eagle.cli:main"}


def test_help_is_quick_and_lists_every_command():
    begin = time.process_time(), time.monotonic()
    ended = started("--help")
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begin[1] < 15, "1.5 s on an idle machine"
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in ended.stdout and f"eagle {name} {entry.example}".rstrip() in ended.stdout
    assert started().stdout == ended.stdout


def test_version():
    ended = started("--version")
    assert (ended.returncode, ended.stdout) == (0, f"eagle3-hsd {eagle.__version__}\n")


@pytest.mark.parametrize("name", ["chat", "serve"])
def test_help_of_what_people_start_first_imports_nothing_heavy(name):
    ended = started(name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"usage: eagle {name} ")
    assert "--pair demo" in ended.stdout and "(default: auto)" in " ".join(ended.stdout.split())


def test_a_name_that_is_none():
    ended = started("serv")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: eagle serv: there is no such command; did you mean 'serve'?\n",
    )
    assert "expected one of chat, serve" in started("x").stderr


def test_a_refused_option_exits_with_2():
    ended = started("chat", "--temperature", "nan")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_main_with_the_line_s_arguments(name, capsys):
    entry = cli.COMMANDS[name]
    module = importlib.import_module(entry.place)
    try:
        code = module.main(["--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code in (0, None)
    text = capsys.readouterr().out
    assert "usage:" in text
    flags = [word for word in entry.example.split() if word.startswith("--")]
    assert all(flag in text for flag in flags), "the example's flags exist"


def test_names_that_help_lists_without_importing_their_registries():
    assert set(options.TREES) == set(TREES)
    assert set(options.LOSSLESS) == {name for name, verifier in VERIFIERS.items() if verifier.lossless}
