"""A conversation in a terminal or a pipe: answers as they come, commands, a status line."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from jinja2 import TemplateError

from eagle import command
from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow
from eagle.chat_template import render
from eagle.serve.options import AUTO, drafting_of, nodes_or_auto, trees, verifiers
from eagle.serve.text import stream_text

COLORS = ("\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m")  # one step after the other
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
PROBE_TOKENS = 16  # tokens of the plain decoding that is measured at the start
NOTICED = 16  # tokens of an answer whose speed says something
HELP = """/reset                 forget the conversation
/retry                 another answer to the last message
/system TEXT           system message of the conversation; without TEXT none
/save FILE             append the conversation to FILE, a line of JSON as training reads it
/temperature T         0 is greedy
/tree NAME             {trees}; none is plain decoding, auto what is fastest here
/nodes N, /depth N     size of the tree
/verifier NAME         {verifiers}
/help                  this text
/exit                  leave (or Ctrl-D); Ctrl-C ends an answer, Alt-Enter begins a new line"""


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
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def measure_plain(self) -> float:
        """Tokens per second of plain decoding, on a few tokens; the first generation is a warm-up."""
        prompt = self._prompt([{"role": "user", "content": "Hello"}])
        row = GeneratedRow([])
        for tokens in (2, PROBE_TOKENS):
            plain: dict[str, Any] = {"tree": "none", "max_new_tokens": tokens, "eos_token_id": [], "temperature": 0}
            for step in stream_text(self.model, prompt, (), **plain):
                row = step.row
        self.plain_rate = decoding_rate(row)
        return self.plain_rate

    # --- answers ---------------------------------------------------------------------------------------------------

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
            self._warn_if_slow(row)
        return row

    def retry(self) -> GeneratedRow | None:
        """Another answer to the last message."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._say("/retry: there is no answer yet")
            return None
        if "seed" in self.arguments:
            self.arguments["seed"] += 1
        before = self.messages
        self.messages = before[:-2]
        row = self.answer(before[-2]["content"])
        if row is None:
            self.messages = before
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

    def _warn_if_slow(self, row: GeneratedRow) -> None:
        """One line, once, where drafts make answers slower."""
        drafted = row.plan is not None and row.plan.tree != "none" and row.plan.nodes > 1
        slow = drafted and len(row.new_tokens) >= NOTICED and decoding_rate(row) < self.plain_rate
        if slow and not self._warned:
            self._warned = True
            other = "/tree none" if self.arguments.get("tree") == AUTO else "/tree auto or /tree none"
            self._say(f"slower than plain decoding: try {other}")

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

    # --- commands --------------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Run a line that begins with "/". False: leave the chat."""
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if name in ("/exit", "/quit"):
            return False
        known: dict[str, Callable[[], object]] = {
            "/reset": self._reset,
            "/retry": self.retry,
            "/system": lambda: self._set_system(value),
            "/save": lambda: self._save(value),
            "/temperature": lambda: self._set("temperature", value, command.TEMPERATURE),
            "/tree": lambda: self._set("tree", value, one_of(*trees())),
            "/nodes": lambda: self._set("nodes", value, nodes_or_auto),
            "/depth": lambda: self._set("depth", value, command.COUNT),
            "/verifier": lambda: self._set("verifier", value, one_of(*verifiers())),
            "/help": lambda: self._say(HELP.format(trees=", ".join(trees()), verifiers=", ".join(verifiers()))),
        }
        if name not in known:
            self._say(f"{name} is no command")
            name = "/help"
        known[name]()
        return True

    def _reset(self) -> None:
        self.reset()
        self._say("the conversation is empty")

    def _set_system(self, text: str) -> None:
        self.system = text
        first = [{"role": "system", "content": text}] if text else []
        self.messages = first + [message for message in self.messages if message["role"] != "system"]
        self._say("the system message is set" if text else "no system message")

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save: expected the name of a file, for example /save chats.jsonl")
            return
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            self._say(f"/save {name}: {error.strerror or error}")
            return
        self._say(f"{len(self.messages)} messages saved in {name}")

    def _set(self, name: str, text: str, read: Callable[[str], Any]) -> None:
        """Change an argument. A size or verifier names a tree, and tree "auto" chooses all of them."""
        try:
            value = read(text)
        except Exception as error:  # ArgumentTypeError is no ValueError
            self._say(f"/{name} {error}")
            return
        drafting = name in ("tree", "nodes", "depth", "verifier")
        if (name, value) == ("tree", AUTO):
            for other in ("nodes", "depth", "verifier"):
                self.arguments.pop(other, None)
        self.arguments[name] = value
        if drafting and name != "tree" and self.arguments.get("tree") == AUTO:
            self.arguments.update(drafting_of({**self.arguments, "tree": None}))
        self._warned = False
        self._say(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(
        self,
        read: Callable[[], str],
        answering: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Answer one message after the other; `read` raises EOFError at the end. `answering`: around every answer."""
        for text in self._texts(read):
            with answering():
                if text.startswith("/") and "\n" not in text:
                    if not self.command(text):
                        return
                elif text:
                    self.answer(text)

    def _texts(self, read: Callable[[], str]) -> Iterator[str]:
        while True:
            try:
                yield read().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("\n/exit or Ctrl-D leaves")


def one_of(*names: str) -> Callable[[str], str]:
    """The type of a command's argument: one of these names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text}: expected one of {', '.join(names)}")
        return text

    return read


def printable(text: str) -> str:
    """Without control characters: a model must not move the cursor or change the terminal."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())


def decoding_rate(row: GeneratedRow) -> float:
    """Tokens per second after the prompt's forward."""
    seconds = row.seconds - row.prefill_seconds
    return (len(row.new_tokens) - 1) / seconds if seconds > 0 else 0.0
