"""Text from tokens while they arrive: `stream_text` yields what each decoding step adds, up to a stop string."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow

CHARACTER = 4  # tokens that one character can be split over: a byte each
WAITING = 16  # tokens after which what is no character by now will be none


class TextDecoder:
    """Token ids of one sequence to text, piece by piece. A character split over several tokens waits for the last."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self._start = self._done = 0  # decode from `_start`; the text of tokens before `_done` was returned

    def push(self, token: int) -> str:
        """The text that becomes certain with this token."""
        self.tokens.append(token)
        before, now = self._texts()
        done = len(self.tokens)
        if len(now) <= len(before) or now.endswith("\ufffd"):
            if done - self._done < WAITING:
                return ""
            done, now = self._settled(now)
        self._start, self._done = self._done, done
        return now[len(before) :]

    def _settled(self, text: str) -> tuple[int, str]:
        """All tokens but the last few, whose character may be incomplete, and their text, which `text` begins with."""
        for done in range(len(self.tokens) - CHARACTER, len(self.tokens) - 2 * CHARACTER, -1):
            settled = self.tokenizer.decode(self.tokens[self._start : done], skip_special_tokens=True)
            if text.startswith(settled):
                return done, settled
        return len(self.tokens), text

    def finish(self) -> str:
        """What was held back."""
        before, now = self._texts()
        self._start, self._done = self._done, len(self.tokens)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode, window = self.tokenizer.decode, self.tokens[self._start :]
        known = window[: self._done - self._start]
        return decode(known, skip_special_tokens=True), decode(window, skip_special_tokens=True)


class StopFilter:
    """Passes text on until one of `stops` occurs; text that may be the beginning of one is held back.

    stopped     whether a stop string occurred; it and what follows are dropped
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown."""
        text = self.held + text
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


class TextStep(NamedTuple):
    """What one step (or the prompt's forward) added.

    text        new text, "" where a character or a possible stop string is incomplete
    tokens      new token ids
    row         the row so far
    finish      "" while it goes on, then "stop" (EOS or a stop string) or "length"
    """

    text: str
    tokens: list[int]
    row: GeneratedRow
    finish: str


@dataclass
class Texts:
    """One answer's tokens to text, up to a stop string."""

    decoder: TextDecoder
    stops: StopFilter
    shown: list[str] = field(default_factory=list)

    def push(self, tokens: Sequence[int]) -> tuple[str, int]:
        """Text of the tokens up to a stop string, and how many were read for it."""
        text = ""
        for count, token in enumerate(tokens, 1):
            text += self.stops.push(self.decoder.push(token))
            if self.stops.stopped:
                return text, count
        return text, len(tokens)

    def finish(self) -> str:
        """What was held back."""
        if self.stops.stopped:
            return ""
        text = self.stops.push(self.decoder.finish())
        return text + ("" if self.stops.stopped else self.stops.finish())


def stream_text(
    model: EagleModel, prompt: Sequence[int], stop: Sequence[str] = (), **arguments: Any
) -> Iterator[TextStep]:
    """Generate from one prompt of token ids and yield a `TextStep` per step; the last one has `finish` set.

    stop        strings that end the text before their first occurrence
    arguments   as for `EagleModel.stream`, which raises ValueError before the first step

    The model is in use until the iterator is exhausted or closed.
    """
    device = model.device
    steps = model.stream(torch.tensor([list(prompt)], dtype=torch.int64, device=device), **arguments)
    return _texts_of(steps, Texts(TextDecoder(model.tokenizer), StopFilter(stop)))


def _texts_of(steps: Iterator[list[GeneratedRow]], texts: Texts) -> Iterator[TextStep]:
    read = 0
    with closing(steps):  # type: ignore[type-var]
        for rows in steps:
            row = rows[0]
            text, count = texts.push(row.new_tokens[read:])
            tokens = row.new_tokens[read : read + count]
            read += count
            finish = "stop" if texts.stops.stopped else finish_reason(row)
            if finish:
                text += texts.finish()
                finish = "stop" if texts.stops.stopped else finish
            yield TextStep(text, tokens, row, finish)
            if finish:
                return


def finish_reason(row: GeneratedRow) -> str:
    """OpenAI's names of stop reasons."""
    if not row.stop_reason:
        return ""
    return "length" if row.stop_reason in ("length", "context") else "stop"
