"""What all commands have in common: the shape of --help; errors as one line on stderr, and an exit code.

2      ValueError or OSError: what was given cannot be used, or a file cannot be read or written; a chat template that
       refuses the messages
130    interrupted by the keyboard (SIGINT), the code that shells expect
"""

import argparse
import sys
from collections.abc import Callable

from jinja2 import TemplateError

FAILED, INTERRUPTED = 2, 130


def parser(module: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """An empty parser for `python -m MODULE`: texts are printed as they are, flags are written out in full."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


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
