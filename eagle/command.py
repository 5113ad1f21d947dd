"""What all commands have in common: the shape of --help; errors as one line on stderr, and an exit code.

2      ValueError or OSError: what was given cannot be used, or a file cannot be read or written; a chat template that
       refuses the messages
130    interrupted by the keyboard (SIGINT), the code that shells expect
"""

import argparse
import math
import sys
from collections.abc import Callable

from jinja2 import TemplateError

FAILED, INTERRUPTED = 2, 130


shown_as: dict[str, str] = {}  # what a command is called in its --help where it was started by another name


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they are, and the default of every argument that has one and does not say so itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, True, "", argparse.SUPPRESS) or isinstance(action.default, list)
        if silent or not action.option_strings or "default" in (action.help or ""):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".strip()


def parser(module: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """An empty parser for `python -m MODULE`: texts are printed as they are, flags are written out in full."""
    return argparse.ArgumentParser(
        prog=shown_as.get(module, f"python -m {module}"),
        description=description,
        epilog=epilog,
        formatter_class=Formatter,
        allow_abbrev=False,
    )


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an argument: a whole number in low .. high."""

    def read(text: str) -> int:
        bounds = f"at least {low}" if high is None else f"in {low} .. {high}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {bounds}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number {bounds}")
        return value

    return read


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    """The type of an argument: a finite number in [low, high]."""

    def read(text: str) -> float:
        bounds = f"of at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number {bounds}")
        return value

    return read


def run(work: Callable[[], int | None], kept: Callable[[], str] | None = None) -> int:
    """Call `work`; its exit code (None: 0), or that of the error it raised.

    kept    a sentence for an interrupted command: what is on disk and how to continue
    """
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return FAILED
    except TemplateError as error:  # a chat template that refuses the messages
        print(f"error: the target's chat template cannot render the messages: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\ninterrupted. {kept() if kept else 'Run the command again.'}", file=sys.stderr)
        return INTERRUPTED


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
