"""How a training command ends: 0, or one line on stderr with exit 2 (an error of use) or 130 (Ctrl-C)."""

import sys
from collections.abc import Callable


def one_line(error: BaseException) -> str:
    """The error's text without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def run_command(main: Callable[[], None], on_interrupt: Callable[[], str] = lambda: "nothing was written") -> int:
    """Run `main` and return the exit status.

    ValueError and OSError are errors of use by this project's convention: bad settings, bad files, a full disk. Others
    keep their traceback. `on_interrupt` returns what is kept and how to continue.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted: {on_interrupt()}", file=sys.stderr)
        return 130
    return 0
