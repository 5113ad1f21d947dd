"""What all commands have in common: the shape of --help, ranges of numbers, one line on stderr, an exit code, tables.

0      done
2      what was given cannot be used (an option out of range, ValueError), a file cannot be read or written (OSError), a
       chat template refuses the messages
130    interrupted by the keyboard (SIGINT)
141    whoever read the output has closed it (`| head`); 130 and 141 are what shells expect

Numbers are checked while options are parsed, before anything is loaded: `add("--batch", type=command.COUNT)`.
"""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from jinja2 import TemplateError

FAILED, INTERRUPTED, CLOSED = 2, 130, 141
LARGEST = 2**31 - 1  # of sizes and counts that torch takes
BUILT_IN = r"invalid|expected|not allowed|ignored|conflicting"  # how argparse's own messages begin


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        """End with one line: `--samples 0: expected 1 or more`."""
        message = re.sub(rf"^argument (--?[\w-]+)[^:]*: (?!{BUILT_IN})", r"\1 ", message)
        self.exit(FAILED, f"error: {' '.join(message.split())}\n")


shown_as: dict[str, str] = {}  # what a command is called in its --help where it was started by another name


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they are, and the default of every option that has one and does not say so itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, True, "", argparse.SUPPRESS) or isinstance(action.default, list | dict)
        if silent or not action.option_strings or "default" in (action.help or ""):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".strip()


def parser(module: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """An empty parser for `python -m MODULE`: texts are printed as they are, flags are written out in full."""
    return Parser(
        prog=shown_as.get(module, f"python -m {module}"),
        description=description,
        epilog=epilog,
        formatter_class=Formatter,
        allow_abbrev=False,
    )


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """An option's type: a whole number in a range."""
    words = f"a whole number, {least} or more" if most == LARGEST else f"a whole number from {least} to {most}"

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text}: expected {words}")

    return parse


def real(least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """An option's type: a finite number in a range; `above`: larger than `least`."""
    words = f"a number above {least:g}" if above else f"a number, {least:g} or more"
    words = words if most == float("inf") else f"a number from {least:g} to {most:g}"

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if least <= value <= most and value != float("inf") and not (above and value == least):
                return value
        raise argparse.ArgumentTypeError(f"{text}: expected {words}")

    return parse


COUNT, INDEX, NODES, PORT = whole(1), whole(0), whole(2), whole(1, 65535)
SEED = whole(0, 2**63 - 1)
TEMPERATURE, SECONDS, SHARE, POSITIVE = real(0), real(0), real(0, 1), real(0, above=True)


def start(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], object],
    argv: list[str] | None = None,
    kept: Callable[[argparse.Namespace], str] | None = None,
) -> int:
    """Parse the command line, `run` the work on its options; the exit code, also of --help and of refused options."""
    options = argparse.Namespace()
    return run(lambda: work(parser.parse_args(argv, options)), kept and (lambda: kept(options)))


def resumable(what: str) -> Callable[[argparse.Namespace], str]:
    """What `start` says of an interrupted command that keeps `what` in the folder --output."""
    return lambda options: f"The finished {what} are kept in {options.output}; the same command goes on there."


def run(work: Callable[[], object], kept: Callable[[], str] | None = None) -> int:
    """Call `work`; the number it returns as exit code (anything else: 0), or the code of the error it raised.

    kept    a sentence for an interrupted command: what is on disk and how to continue
    """
    open_streams()
    try:
        code = exit_code(work)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return code
    except BrokenPipeError:
        return closed()
    except (ValueError, OSError) as error:
        return refuse(one_line(error))
    except TemplateError as error:  # a chat template that refuses the messages
        return refuse(f"the target's chat template cannot render the messages: {one_line(error)}")
    except KeyboardInterrupt:
        say(f"\ninterrupted. {kept() if kept else 'Run the command again.'}")
        return INTERRUPTED


def exit_code(work: Callable[[], object]) -> int:
    """The number that `work` returns (anything else: 0) or leaves with, as argparse does."""
    try:
        code = work()
    except SystemExit as leaving:
        code = leaving.code
    return code if isinstance(code, int) else 0


def refuse(reason: str) -> int:
    """Say why in one line; the exit code."""
    say(f"error: {reason}")
    return FAILED


def say(line: str) -> None:
    """A line on stderr, if somebody still reads it."""
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def closed() -> int:
    """The exit code of a command whose reader has gone; what is still buffered goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return CLOSED


def open_streams() -> None:
    """Let stdin, stdout and stderr that were closed (`<&-`) be empty ones: files opened later must not take their
    place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # open until the end


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Header, rule and rows, one line each; what would end a cell is escaped."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
