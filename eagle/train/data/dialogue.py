"""A conversation whose answers are being sampled."""

import json


def json_line(record: object) -> str:
    """One line of JSONL."""
    return json.dumps(record, ensure_ascii=False) + "\n"


class Dialogue:
    """Token ids so far, the spans that the target wrote, and the messages so far."""

    def __init__(self, tokenizer, messages: list[dict[str, str]], temperature: float) -> None:
        """Every assistant turn of `messages` is to be sampled, at `temperature`."""
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.original = messages
        self.turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.spans: list[list[int]] = []
        self.text = ""

    def next_prompt(self) -> bool:
        """Extend the ids up to the next assistant turn.

        False where there is none, or where the template rewrites earlier turns.
        """
        if len(self.spans) >= len(self.turns):
            return False
        messages = self.messages + self.original[len(self.messages) : self.turns[len(self.spans)]]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if not text.startswith(self.text):
            return False
        self.messages = messages
        self.ids += self.tokenizer(text[len(self.text) :], add_special_tokens=False)["input_ids"]
        self.text = text
        return True

    def answer(self, ids: list[int]) -> None:
        """Append a sampled answer."""
        self.spans.append([len(self.ids), len(self.ids) + len(ids)])
        self.ids += ids
        self.messages.append({"role": "assistant", "content": self.tokenizer.decode(ids, skip_special_tokens=True)})
        self.text += self.tokenizer.decode(ids, skip_special_tokens=False)

    def record(self) -> dict:
        """The line of the output."""
        return {"messages": self.messages, "ids": self.ids, "spans": self.spans, "vocab_size": len(self.tokenizer)}
