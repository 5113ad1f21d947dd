"""EAGLE's script of this name, with its flags: the same questions answered token by token, without drafts."""

import sys

from eagle.evaluation import gen_ea_answer_llama3chat


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    return gen_ea_answer_llama3chat.main(["--tree", "none", *given])


if __name__ == "__main__":
    raise SystemExit(main())
