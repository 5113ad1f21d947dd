"""A chat in the terminal.

    python -m eagle.chat --pair demo
    echo "What is 2 + 3?" | python -m eagle.chat --pair demo --temperature 0

What one decoding step emitted has one color. Each answer is followed by a status line: acceptance length (tokens per
step), tokens per second, and the tokens per second of plain decoding measured at the start. Without a terminal there
are no colors, the answers go to stdout and everything else to stderr. Ctrl-C ends an answer, not the chat. A pasted
text is one message, Alt-Enter begins a new line, and what is typed during an answer waits for its end.
"""

import argparse
import io
import sys

from eagle import command
from eagle.serve.options import add_model_arguments, drafting_arguments, load_model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.chat", __doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--temperature",
        type=command.TEMPERATURE,
        help="0 is greedy; default: the model's generation_config.json, else 1",
    )
    parser.add_argument("--top-p", type=command.SHARE, help="default: as for the temperature")
    parser.add_argument("--max-new-tokens", type=command.COUNT, default=512, help="most tokens of one answer")
    parser.add_argument("--seed", type=command.SEED, help="the same answers to the same lines")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--no-plain", action="store_true", help="do not measure plain decoding at the start")
    return parser


def run(options: argparse.Namespace) -> None:
    """Load the pair and answer lines until the input ends."""
    from eagle.chat_template import check_keywords
    from eagle.serve.conversation import BOLD, PLAIN, Chat
    from eagle.serve.terminal import Terminal

    interactive, color = sys.stdin.isatty() and sys.stdout.isatty(), sys.stdout.isatty()
    named = {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    given = {name: value for name, value in named.items() if value is not None}
    model = load_model(options)
    chat = Chat(
        model,
        {**drafting_arguments(options), "reuse_cache": True, **given},
        sys.stdout,
        sys.stderr,
        color,
        options.system,
        template_kwargs=options.chat_template_kwargs,
    )
    check_keywords(model.tokenizer, options.chat_template_kwargs)
    if not options.no_plain:
        chat.measure_plain()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bytes of another encoding in a pipe
    if not interactive:
        chat.run(line_of_stdin)
        return
    terminal = Terminal()
    print(f"{BOLD}{options.base_model_path}{PLAIN}  /help for commands")
    chat.run(terminal.read, terminal.answering)


def line_of_stdin() -> str:
    """The next line. Raises EOFError at the end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv, lambda _: "")


if __name__ == "__main__":
    sys.exit(main())
