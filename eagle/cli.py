"""The `eagle` command: the project's commands by short names. Nothing is imported before it is known which one it is.

eagle chat --pair demo            the same as python -m eagle.chat --pair demo
"""

import difflib
import importlib
import sys
from typing import NamedTuple

from eagle import __version__, command


class Entry(NamedTuple):
    """A command: the module that `python -m` starts, where its `main` is, what it does, an example."""

    module: str
    place: str
    does: str
    example: str


COMMANDS = {
    "chat": Entry("eagle.chat", "eagle.chat", "talk to a model in the terminal", "--pair demo"),
    "serve": Entry("eagle.serve", "eagle.serve.__main__", "an OpenAI-compatible server with a page", "--pair demo"),
    "bench": Entry(
        "eval",
        "eval.__main__",
        "answer a benchmark's questions and measure how",
        "--bench gsm8k --pair demo --methods plain auto+hsd --num-questions 8 --output results/gsm8k",
    ),
    "train": Entry("eagle.train", "eagle.train.__main__", "train a head", "--target TARGET --data DATA --output HEAD"),
    "convert": Entry(
        "eagle.convert",
        "eagle.convert",
        "a head from one format to another",
        "HEAD OUTPUT --to speculators",
    ),
    "fetch": Entry(
        "eagle.checkpoints.fetch", "eagle.checkpoints.fetch", "download a known pair's target", "smollm2-135m"
    ),
    "calibrate": Entry(
        "eagle.calibrate", "eagle.calibrate", "measure what a head's drafts are accepted", "TARGET HEAD"
    ),
    "audit": Entry("hsd.audit", "hsd.audit.__main__", "check by enumeration that verifiers are lossless", ""),
}
USAGE = """usage: eagle COMMAND [options]

EAGLE-3 drafting with lossless verification.

commands:
{commands}

eagle COMMAND --help lists a command's options with their defaults; python -m MODULE is the same command.
eagle --version prints the version.
"""


def overview() -> str:
    """What --help prints."""
    lines = [f"  {name:<10} {entry.does}\n{'':<13}eagle {name} {entry.example}" for name, entry in COMMANDS.items()]
    return USAGE.format(commands="\n".join(line.rstrip() for line in lines))


def main(argv: list[str] | None = None) -> int:
    """Run the named command on the rest of the line; its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        return command.run(lambda: print(overview(), end=""))
    if name == "--version":
        return command.run(lambda: print(f"eagle3-hsd {__version__}"))
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        return command.refuse(f"eagle {name}: there is no such command; {remedy}")
    entry = COMMANDS[name]
    command.shown_as[entry.module] = f"eagle {name}"
    found: int | None = importlib.import_module(entry.place).main(rest)
    return found or 0
