"""Compile all native code now, where it would be compiled at its first use, and say what there is.

    python -m eagle.native

few rows through layers (eagle/nn/native), levels of hybrid trees (eagle/trees/level.cpp), draws and decisions
(hsd/native). Everything runs without, more slowly: the exit code is 0 either way. hsd/native/build.py and
eagle/nn/native/__init__.py name the environment variables that choose compiler, directory and instructions.
"""

import argparse

from eagle import command
from eagle.nn import native as few_rows
from eagle.trees import native_level
from hsd import native as decisions


def report(_options: argparse.Namespace) -> None:
    """One line for each of the three."""
    known = {number: name for name, number in few_rows.INSTRUCTIONS.items()}
    missing = few_rows.unavailable()
    print("few rows:", missing or f"{known[few_rows.load().instructions]}, {few_rows.build()}")
    for name, library in (("levels", native_level.LIBRARY), ("decisions", decisions.LIBRARY)):
        print(f"{name}: {library.unavailable or 'compiled'}")
    if missing:
        print("What is not compiled goes through torch.")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(command.parser("eagle.native", __doc__), report, argv)


if __name__ == "__main__":
    raise SystemExit(main())
