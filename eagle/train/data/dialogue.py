"""A conversation whose answers are being sampled."""

import json

from eagle.chat_template import fixed, render


def json_line(record: object) -> str:
    """One line of JSONL."""
    return json.dumps(record, ensure_ascii=False) + "\n"


class Dialogue:
    """Token ids so far, the spans that the target wrote, and the messages so far.

    A template may rewrite earlier turns (Qwen3's takes their thinking out). What was read until then is finished as a
    record of its own, and the next answer's prompt is read anew: every answer is in one record, behind what the target
    read when it wrote it.
    """

    def __init__(
        self, tokenizer, messages: list[dict[str, str]], temperature: float, keywords: dict | None = None
    ) -> None:
        """Every assistant turn of `messages` is to be sampled, at `temperature`; `keywords` for the chat template."""
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.keywords = keywords or {}
        self.original = messages
        self.turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self.messages: list[dict[str, str]] = []
        self.answers = 0
        self.finished: list[dict] = []
        self.ids: list[int] = []
        self.spans: list[list[int]] = []
        self.text = ""

    def next_prompt(self) -> bool:
        """Extend the ids up to the next assistant turn. False where there is none."""
        if self.answers >= len(self.turns):
            return False
        messages = self.messages + self.original[len(self.messages) : self.turns[self.answers]]
        text = render(self.tokenizer, messages, fixed(self.keywords))
        if not text.startswith(self.text):
            self.finished.append(self.record())
            self.ids, self.spans, self.text = [], [], ""
        self.messages = messages
        self.ids += self.tokenizer(text[len(self.text) :], add_special_tokens=False)["input_ids"]
        self.text = text
        return True

    def answer(self, ids: list[int]) -> None:
        """Append a sampled answer."""
        self.answers += 1
        self.spans.append([len(self.ids), len(self.ids) + len(ids)])
        self.ids += ids
        self.messages.append({"role": "assistant", "content": self.tokenizer.decode(ids, skip_special_tokens=True)})
        self.text += self.tokenizer.decode(ids, skip_special_tokens=False)

    def record(self) -> dict:
        """A line of the output: what was read since the template last rewrote earlier turns."""
        found = {
            "messages": list(self.messages),
            "ids": self.ids,
            "spans": self.spans,
            "vocab_size": len(self.tokenizer),
        }
        return {**found, "chat_template_kwargs": self.keywords} if self.keywords else found

    def records(self) -> list[dict]:
        """All lines of the output; one whose prompt has no answer is none."""
        return [*self.finished, *([self.record()] if self.spans else [])]
