"""EAGLE's script of this name, with its flags: `python -m eval --bench-name mt_bench --protocol eagle`.

This package stands below `eval` and imports nothing of it: the command is started by its name, as `eagle bench` is.
"""

import sys

from eagle import cli


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return cli.main(["bench", "--bench-name", "mt_bench", "--protocol", "eagle", *given])


if __name__ == "__main__":
    raise SystemExit(main())
