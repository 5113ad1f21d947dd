"""Conversations on disk -> token ids with a mask of what the assistant said -> batches.

A file is JSONL in one of three forms (one conversation per line, other keys are ignored):
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}           ShareGPT
    {"ids": [...], "spans": [[a, b], ...], "vocab_size": V}           as sampled by eagle.train.regenerate: the
                                                                      assistant's tokens are those at a <= i < b

The target's own chat template renders them. Where it marks the assistant's text with {% generation %}, that mask is
used; otherwise each assistant turn is what its rendering adds to the prompt before it.

The order of training is a function of (seed, epoch) alone, so a run that is stopped can continue exactly.
"""

import hashlib
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from eagle import jsonl
from eagle.chat_template import check_keywords, check_text, fixed, render

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}


class Example(NamedTuple):
    """One conversation: token ids, and for each whether the assistant said it. Five bytes a token once loaded."""

    ids: Sequence[int]
    answer: Sequence[bool] | bytes

    def drafted(self) -> int:
        """How many tokens drafting could predict here: answer tokens that follow an answer token."""
        return sum(bool(a and b) for a, b in zip(self.answer[1:-1], self.answer[2:], strict=True))


def digest(examples: list[Example]) -> str:
    """SHA-256 over token ids and answer marks of all examples, in order."""
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(len(example.ids).to_bytes(8, "little"))
        hashed.update(array("i", example.ids).tobytes() + bytes(example.answer))
    return hashed.hexdigest()


class Batch(NamedTuple):
    """Right-padded rows. `answer` marks the assistant's tokens, `lengths` the real ones."""

    tokens: Tensor  # Int64[B, n]
    answer: Tensor  # Bool[B, n]
    lengths: Tensor  # Int64[B]

    def to(self, device) -> "Batch":
        return Batch(*(field.to(device) for field in self))


def read_records(path: str | Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, record) of every line; ValueError where a line is not a JSON object."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"training data {str(path)!r}: no such file")
    with path.open("rb") as content:
        yield from jsonl.objects(content, str(path), "a conversation")


def to_messages(record: dict) -> list[dict[str, str]]:
    """Messages with the roles system, user, assistant, tool, from either form of text."""
    forms = {"messages": ("role", "content"), "conversations": ("from", "value")}
    form = next((key for key in forms if key in record), None)
    if form is None:
        raise ValueError(f"expected the key 'messages', 'conversations' or 'ids', found {sorted(record)}")
    if not isinstance(record[form], list) or not all(isinstance(turn, dict) for turn in record[form]):
        raise ValueError(f"{form}: expected a list of turns with {' and '.join(map(repr, forms[form]))}")
    if not record[form]:
        raise ValueError(f"{form}: an empty list; expected at least one assistant turn")
    turns = [tuple(turn.get(key) for key in forms[form]) for turn in record[form]]
    for role, text in turns:
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            raise ValueError(
                f"a turn with role {shorten(role)} and content {shorten(text)}; expected {sorted(ROLES)} and a text"
            )
    if not any(ROLES[role] == "assistant" for role, _ in turns):
        raise ValueError("no assistant turn to learn from")
    for number, (role, text) in enumerate(turns):
        check_text(text, f"turn {number} ({role})")
    return [{"role": ROLES[role], "content": text} for role, text in turns]


def read_messages(paths: list[str]) -> list[list[dict[str, str]]]:
    """The messages of every conversation of the files; ValueError naming the line that has none."""
    found = []
    for path in paths:
        begins = Begins(path)
        for place, record in read_records(path):
            try:
                messages = to_messages(record)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            if not begins.with_an_answer(messages):
                found.append(messages)
        begins.report()
    return found


class Begins:
    """Conversations of a file that begin with the assistant, of which ShareGPT has many: nobody asked for it."""

    def __init__(self, path: str) -> None:
        """None found yet."""
        self.path, self.skipped = path, 0

    def with_an_answer(self, messages: list[dict[str, str]]) -> bool:
        """Whether this is one; it is counted."""
        first = next(message["role"] for message in messages if message["role"] != "system")
        self.skipped += first == "assistant"
        return first == "assistant"

    def report(self) -> None:
        """Say how many there were."""
        if self.skipped:
            print(f"{self.path}: {self.skipped} conversations begin with the assistant, left out", file=sys.stderr)


def is_index(value, stop: int) -> bool:
    """Whether a value from JSON is a whole number in 0 .. stop - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop


def check_ids(record: dict, vocab_size: int) -> None:
    """ValueError where a record's ids or spans are not what the target's tokenizer could have given."""
    if record.get("vocab_size") != vocab_size:
        raise ValueError(
            f"ids are of a vocabulary of {record.get('vocab_size')} tokens, the target's tokenizer has {vocab_size}; "
            "regenerate the answers with this target"
        )
    ids, spans = record["ids"], record.get("spans")
    if not isinstance(ids, list):
        raise ValueError(f"ids is {shorten(ids)}; expected a list of token ids")
    wrong = next((token for token in ids if not is_index(token, vocab_size)), None)
    if wrong is not None:
        raise ValueError(f"ids hold {shorten(wrong)}; expected whole numbers in 0 .. {vocab_size - 1}")
    if not isinstance(spans, list):
        raise ValueError(f"spans is {shorten(spans)}; expected the ranges [a, b] of ids that the assistant said")
    for span in spans:
        pair = isinstance(span, list) and len(span) == 2 and all(is_index(end, len(ids) + 1) for end in span)
        if not pair or span[0] > span[1]:
            raise ValueError(f"spans hold {shorten(span)}; expected [a, b] with 0 <= a <= b <= {len(ids)}")


def shorten(value) -> str:
    """A value's repr, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def from_ids(record: dict, vocab_size: int, keywords: dict) -> Example:
    """The example of a record with ids. Raises ValueError where ids or spans are not usable, or where they were sampled
    with other keywords of the chat template.
    """
    check_ids(record, vocab_size)
    sampled = record.get("chat_template_kwargs", {})
    if sampled != keywords:
        raise ValueError(
            f"ids were sampled with chat template keywords {sampled}, not {keywords}: a head trained on them expects "
            f"prompts of that form; pass --chat-template-kwargs {json.dumps(sampled)!r}, or regenerate the answers"
        )
    ids = record["ids"]
    return Example(ids, [any(a <= i < b for a, b in record["spans"]) for i in range(len(ids))])


def encode_messages(tokenizer, messages: list[dict[str, str]], keywords: dict | None = None) -> Example:
    """Render with the tokenizer's chat template and mark the assistant's tokens, their end token included.

    Raises ValueError where there is no template, or one in which the answers cannot be found.
    """
    render(tokenizer, messages, fixed(keywords), prompt=False)
    if "{% generation %}" in tokenizer.chat_template or "{%- generation %}" in tokenizer.chat_template:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **fixed(keywords)
        )
        return Example(list(encoded["input_ids"]), [bool(bit) for bit in encoded["assistant_masks"]])
    return encode_by_prefixes(tokenizer, messages, fixed(keywords))


def encode_by_prefixes(tokenizer, messages: list[dict[str, str]], keywords: dict) -> Example:
    """Each assistant turn is what its rendering adds to the rendered prompt before it."""
    spans, text = [], render(tokenizer, messages, keywords, prompt=False)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], keywords)
            after = render(tokenizer, messages[: i + 1], keywords, prompt=False)
            if not (text.startswith(before) and text.startswith(after.rstrip())):
                raise ValueError(
                    "the chat template rewrites earlier turns, so the assistant's text cannot be found by prefixes; "
                    "wrap it in {% generation %} in the template, or train on one turn per line"
                )
            spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer = [any(a <= start and start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
    return Example(list(encoded["input_ids"]), answer)


def load_examples(tokenizer, paths: list[str], max_length: int, keywords: dict | None = None) -> list[Example]:
    """Every conversation of the files, cut at `max_length` tokens; those with nothing left to draft are dropped.

    keywords    for the chat template; ids that were sampled with others are refused
    """
    examples = []
    keywords = keywords or {}
    check_keywords(tokenizer, keywords)
    for path in paths:
        begins = Begins(path)
        for place, record in read_records(path):
            try:
                if "ids" in record:
                    ids, answer = from_ids(record, len(tokenizer), keywords)
                elif begins.with_an_answer(messages := to_messages(record)):
                    continue
                else:
                    ids, answer = encode_messages(tokenizer, messages, keywords)
            except (ValueError, TemplateError) as error:  # templates refuse, for example, two user turns in a row
                raise ValueError(f"{place}: {error}") from error
            example = Example(array("i", ids[:max_length]), bytes(answer[:max_length]))
            if example.drafted():
                examples.append(example)
        begins.report()
    if not examples:
        raise ValueError(f"training data {paths}: no conversation has an answer to draft within {max_length} tokens")
    return examples


def epoch_plan(lengths: list[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches of example indices with rows * longest <= batch_tokens; similar lengths share a batch.

    Shuffle, sort by length inside windows of about 32 batches, cut, shuffle the batches.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = max(1, 32 * batch_tokens // max(1, sum(lengths) // len(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        rows: list[int] = []
        for i in sorted(order[start : start + window], key=lambda i: -lengths[i]):
            if rows and (len(rows) + 1) * lengths[rows[0]] > batch_tokens:
                batches.append(rows)
                rows = []
            rows.append(i)
        batches.append(rows)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def split_rows(rows: list[int], parts: int) -> list[list[int]]:
    """Deal one batch out to processes and accumulation rounds.

    Every part has rows of every length; none is empty unless there are fewer rows than parts.
    """
    return [rows[part::parts] for part in range(parts)]


def collate(examples: list[Example]) -> Batch:
    """Pad on the right with token 0."""
    longest = max(len(example.ids) for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    answer = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example.ids)] = torch.tensor(list(example.ids))
        answer[row, : len(example.ids)] = torch.tensor(list(example.answer), dtype=torch.bool)
    return Batch(tokens, answer, torch.tensor([len(example.ids) for example in examples]))
