"""Numbers on every command line have a range that is checked before anything is loaded; streams may be closed."""

import argparse
import importlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_commands import COMMANDS

TEXTS = ("nan", "inf", "-inf", "1e999", "-5", "0.5x", "")
CHECKED_LATER = {"eagle.train"}  # by TrainConfig, whose settings may come from a file as well


def module_of(name: str) -> ModuleType:
    """The module whose `main` `python -m NAME` calls."""
    inside = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(inside, "__path__") else inside


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser with which a command reads its options."""
    found = []

    def parse(parser, *_):
        found.append(parser)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        module_of(module).main([])
    return found[0]


@pytest.mark.parametrize("module", [module for module in COMMANDS if module not in CHECKED_LATER])
def test_every_number_has_a_range(module):
    for action in parser_of(module)._actions:  # argparse has no other list of them
        flag = "/".join(action.option_strings) or action.dest
        assert action.type not in (int, float), f"{module} {flag}: give it a range of eagle/command.py"
        if action.type is None:
            continue
        for text in TEXTS:
            with suppress(ValueError, argparse.ArgumentTypeError):
                value = action.type(text)
                assert not isinstance(value, int | float), f"{module} {flag} takes {text!r}"


@pytest.mark.parametrize(
    ("module", "more", "line"),
    [
        ("eagle.chat", ["--temperature", "nan"], "error: --temperature nan: expected a number, 0 or more"),
        ("eagle.chat", ["--seed", "-1"], "error: --seed -1: expected a whole number from 0 to 9223372036854775807"),
        ("eagle.chat", ["--top-p", "2"], "error: --top-p 2: expected a number from 0 to 1"),
        ("eagle.serve", ["--port", "99999"], "error: --port 99999: expected a whole number from 1 to 65535"),
        ("eagle.serve", ["--max-bytes", "-5"], "error: --max-bytes -5: expected a whole number, 1 or more"),
        ("eval.accuracy", [], "error: the following arguments are required: --output"),
        ("eval.measure.budget", ["--batch", "1.5"], "error: --batch 1.5: expected a whole number, 1 or more"),
        ("hsd.audit", ["--seed", "1.5"], "error: --seed 1.5: expected a whole number from 0 to"),
    ],
)
def test_a_refused_option_is_one_line_and_exit_code_2(module, more, line, capsys):
    try:
        code = module_of(module).main(more)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(line)


COMMAND = Path(__file__).parents[1] / "eagle" / "command.py"
PRINTS = (
    "import runpy, sys, types; command = types.SimpleNamespace(**runpy.run_path('FILE')); "
    "sys.exit(command.start(command.parser('x', 'y'), WORK, sys.argv[1:]))"
).replace("FILE", str(COMMAND))


def started(work: str, shell: str) -> subprocess.CompletedProcess:
    """A command with this work, started by a shell line in which COMMAND stands for it."""
    code = PRINTS.replace("WORK", work)
    line = shell.replace("COMMAND", f'"{sys.executable}" -c "{code}"')
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("more", ["", "--help"])
def test_a_reader_that_has_gone_is_no_error(more):
    work = "lambda _: [print('x' * 1000) for _ in range(1000)]"
    ended = started(work, f"(COMMAND {more}; echo $? >&2) | true")
    assert ended.stderr in ("141\n", "0\n" if more else "")
    ended = started(work, "(COMMAND; echo $? >&2) | head -n 1")
    assert (ended.stdout, ended.stderr) == ("x" * 1000 + "\n", "141\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty_ones(closed, tmp_path):
    place = tmp_path / "written"
    says = "print('out'), print('err', file=sys.stderr)"
    work = f"lambda _: (sys.stdin.read(), {says}, open('{place}', 'w').write('whole'))[0]"
    assert started(work, f"COMMAND {closed} 3>&-; exit $?").returncode == 0
    assert place.read_text() == "whole"
