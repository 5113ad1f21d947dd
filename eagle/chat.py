"""A chat in the terminal.

    python -m eagle.chat --pair demo
    echo "What is 2 + 3?" | python -m eagle.chat --pair demo --temperature 0

What one decoding step emitted has one color. Each answer is followed by a status line: acceptance length (tokens per
step), tokens per second, and the tokens per second of plain decoding measured at the start. Without a terminal there
are no colors, the answers go to stdout and everything else to stderr. Ctrl-C ends an answer, not the chat.
"""

import argparse
import io
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TextIO

from jinja2 import TemplateError

from eagle import command
from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow
from eagle.autotune.candidates import AUTO
from eagle.chat_template import check_keywords, render
from eagle.serve.options import LOSSLESS, add_model_arguments, drafting_arguments, load_model
from eagle.serve.text import stream_text
from eagle.trees import TREES

COLORS = ("\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m")  # one step after the other
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
PROBE_TOKENS = 16  # tokens of the plain decoding that is measured at the start
HELP = """/reset                 forget the conversation
/temperature T         0 is greedy
/tree NAME             {trees}; none is plain decoding, auto what is fastest here
/verifier NAME         {verifiers}
/help                  this text
/exit                  leave (or Ctrl-D); Ctrl-C ends an answer"""


@dataclass
class Chat:
    """A conversation with a model.

    arguments   keywords of `EagleModel.stream`
    out, log    answers, and everything else
    color       whether `out` is a terminal
    """

    model: EagleModel
    arguments: dict[str, Any]
    out: TextIO = sys.stdout
    log: TextIO = sys.stderr
    color: bool = False
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    plain_rate: float = 0.0
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model.tokenizer.chat_template:
            raise ValueError("the target's tokenizer has no chat template: use an instruct or chat model")
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def measure_plain(self) -> float:
        """Tokens per second of plain decoding, on a few tokens; the first generation is a warm-up."""
        prompt = self._prompt([{"role": "user", "content": "Hello"}])
        row = GeneratedRow([])
        for tokens in (2, PROBE_TOKENS):
            for step in stream_text(
                self.model, prompt, tree="none", max_new_tokens=tokens, eos_token_id=[], temperature=0
            ):
                row = step.row
        self.plain_rate = decoding_rate(row)
        return self.plain_rate

    def answer(self, text: str) -> GeneratedRow | None:
        """Stream an answer to `text` and remember both; a failed request is forgotten. None: nothing was generated."""
        messages = [*self.messages, {"role": "user", "content": text}]
        answer, row, interrupted = "", None, False
        try:
            steps = stream_text(self.model, self._prompt(messages), **self.arguments)
            with closing(steps):  # type: ignore[type-var]
                for index, step in enumerate(steps):
                    row = step.row
                    answer += step.text
                    self._show(step.text, index)
        except KeyboardInterrupt:
            interrupted = True
        except (ValueError, TemplateError) as error:  # TemplateError: the chat template refuses the messages
            self._say(command.one_line(error) + (" (/reset forgets the conversation)" if self.messages else ""))
            return None
        self.out.write("\n")
        self.out.flush()
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        if row is not None:
            self._say(self.status(row, interrupted))
        return row

    def status(self, row: GeneratedRow, interrupted: bool = False) -> str:
        """The line after an answer."""
        emitted = sum(step.emitted for step in row.steps)
        tau = emitted / len(row.steps) if row.steps else 0.0
        parts = [f"acceptance length {tau:.2f}", f"{decoding_rate(row):.1f} tok/s"]
        if self.plain_rate:
            parts.append(f"plain {self.plain_rate:.1f} tok/s")
        parts.append(f"{len(row.new_tokens)} tokens, {'interrupted' if interrupted else row.stop_reason}")
        if row.reused_tokens:
            parts.append(f"{row.reused_tokens} of {row.prompt_tokens} prompt tokens from the cache")
        return "[" + " | ".join(parts) + "]"

    def command(self, line: str) -> bool:
        """Run a line that begins with "/". False: leave the chat."""
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if name in ("/exit", "/quit"):
            return False
        settings: dict[str, Callable[[str], None]] = {
            "/temperature": self._set_temperature,
            "/tree": lambda value: self._set_name("tree", value, [*TREES, AUTO]),
            "/verifier": lambda value: self._set_name("verifier", value, LOSSLESS),
        }
        if name == "/reset":
            self.reset()
            self._say("the conversation is empty")
        elif name in settings:
            settings[name](value)
        else:
            if name != "/help":
                self._say(f"{name} is no command")
            self._say(HELP.format(trees=", ".join([*TREES, AUTO]), verifiers=", ".join(LOSSLESS)))
        return True

    def _set_temperature(self, value: str) -> None:
        try:
            temperature = float(value)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature < float("inf"):
            self._say(f"/temperature {value}: expected a number from 0 (greedy) up, for example /temperature 0.7")
            return
        self.arguments["temperature"] = temperature
        self._say(f"temperature {temperature:g}")

    def _set_name(self, argument: str, value: str, names: list[str]) -> None:
        if value not in names:
            self._say(f"/{argument} {value}: expected one of {', '.join(names)}")
            return
        self.arguments[argument] = value
        self._say(f"{argument} {value}")

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        text = render(self.model.tokenizer, messages, self.template_kwargs)
        return list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _show(self, text: str, step: int) -> None:
        if not text:
            return
        self.out.write(f"{COLORS[step % len(COLORS)]}{printable(text)}{PLAIN}" if self.color else text)
        self.out.flush()

    def _say(self, text: str) -> None:
        self.log.write(f"{DIM}{text}{PLAIN}\n" if self.color else f"{text}\n")
        self.log.flush()

    def run(self, lines: TextIO, interactive: bool) -> None:
        """Answer one line after the other until the input ends."""
        while True:
            try:
                line = input("> ") if interactive else lines.readline()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("\n/exit or Ctrl-D leaves")
                continue
            if not line and not interactive:
                return
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line.strip():
                self.answer(line.strip())


def printable(text: str) -> str:
    """Without control characters: a model must not move the cursor or change the terminal."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())


def decoding_rate(row: GeneratedRow) -> float:
    """Tokens per second after the prompt's forward."""
    seconds = row.seconds - row.prefill_seconds
    return (len(row.new_tokens) - 1) / seconds if seconds > 0 else 0.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.parser("eagle.chat", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--temperature", type=command.TEMPERATURE, default=1.0, help="0 is greedy")
    parser.add_argument("--top-p", type=command.SHARE, default=1.0)
    parser.add_argument("--max-new-tokens", type=command.COUNT, default=512, help="most tokens of one answer")
    parser.add_argument("--seed", type=command.SEED, default=None, help="the same answers to the same lines")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--no-plain", action="store_true", help="do not measure plain decoding at the start")
    return parser


def run(options: argparse.Namespace) -> None:
    """Load the pair and answer lines until the input ends."""
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
    if interactive:
        import readline  # noqa: F401  # editing and history for input()

        print(f"{BOLD}{options.base_model_path}{PLAIN}  /help for commands")
    chat.run(sys.stdin, interactive)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv, lambda _: "")


if __name__ == "__main__":
    sys.exit(main())
