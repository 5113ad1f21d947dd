"""Compile the native code of few rows now, where it would be compiled at its first use, and say what there is.

    python -m eagle.nn.native

Everything runs without native code too, more slowly: the exit code is 0 either way. eagle/nn/native/__init__.py names
the environment variables that choose instructions, and the directory of the compiled library.
"""

import argparse

from eagle import command
from eagle.nn import native


def report(_options: argparse.Namespace) -> None:
    """Say which instructions are used, or why there is no native code."""
    reason = native.unavailable()
    if reason:
        print(f"no native code: {reason}. Products of few rows go through torch.")
        return
    name = next(name for name, value in native.INSTRUCTIONS.items() if value == native.load().instructions)
    print(f"native code for few rows: {name}, {native.build()}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(command.parser("eagle.nn.native", __doc__), report, argv)


if __name__ == "__main__":
    raise SystemExit(main())
