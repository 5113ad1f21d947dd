"""What is read from files, what the assistant said, and how batches are planned."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from eagle.train.data.conversations import collate, encode_messages, epoch_plan, load_examples, split_rows

TURNS = [("user", "w1 w2"), ("assistant", "w3 w4"), ("user", "w5"), ("assistant", "w6")]
# The same rendering without {% generation %} marks.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_target):
    return AutoTokenizer.from_pretrained(tiny_target)


def messages():
    return [{"role": role, "content": text} for role, text in TURNS]


def write(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return [str(path)]


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE], ids=["marked", "prefixes"])
def test_the_assistants_tokens_and_their_end_are_marked(tokenizer, template):
    tokenizer.chat_template = template or tokenizer.chat_template
    example = encode_messages(tokenizer, messages())
    said = tokenizer.convert_ids_to_tokens([i for i, mark in zip(*example, strict=True) if mark])
    assert said == ["w3", "w4", "<|end|>", "w6", "<|end|>"]


def test_both_text_forms_are_one(tokenizer, tmp_path):
    sharegpt = {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in TURNS]}
    first, second = load_examples(tokenizer, write(tmp_path / "d.jsonl", {"messages": messages()}, "", sharegpt), 128)
    assert first == second


def test_long_conversations_are_cut(tokenizer, tmp_path):
    paths = write(tmp_path / "d.jsonl", {"messages": messages()})
    whole, cut = load_examples(tokenizer, paths, 128)[0], load_examples(tokenizer, paths, 8)[0]
    assert cut.ids == whole.ids[:8]
    with pytest.raises(ValueError, match="no conversation has an answer to draft within 4"):
        load_examples(tokenizer, paths, 4)


BAD = {
    "not JSON": ("{", ["line 2", "not JSON"]),
    "not an object": ([1], ["line 2", "not a JSON object"]),
    "no turns": ({"text": "x"}, ["line 2", "'messages'", "text"]),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, ["line 2", "robot", "assistant"]),
    "no list": ({"messages": "w1"}, ["line 2", "messages", "list of turns", "'role'", "'content'"]),
    "turns of text": ({"conversations": ["w1"]}, ["line 2", "conversations", "'from'", "'value'"]),
    "no spans": ({"ids": [1, 2], "vocab_size": 96}, ["line 2", "spans", "None"]),
    "no text": ({"messages": [{"role": "user"}]}, ["line 2", "None"]),
    "no answer": ({"messages": [{"role": "user", "content": "w1"}]}, ["line 2", "no assistant turn"]),
    "ids out of range": (
        {"ids": [1, 96], "spans": [[1, 2]], "vocab_size": 96},
        ["line 2", "ids hold 96", "0 .. 95"],
    ),
    "a negative id": ({"ids": [1, -1], "spans": [[1, 2]], "vocab_size": 96}, ["line 2", "ids hold -1"]),
    "ids as text": (
        {"ids": ["1", "2"], "spans": [[1, 2]], "vocab_size": 96},
        ["line 2", "ids hold '1'", "whole numbers"],
    ),
    "ids as one text": ({"ids": "12", "spans": [[0, 1]], "vocab_size": 96}, ["line 2", "ids is '12'", "list"]),
    "a span past the end": ({"ids": [1, 2], "spans": [[1, 3]], "vocab_size": 96}, ["line 2", "[1, 3]", "<= 2"]),
    "a span backwards": ({"ids": [1, 2], "spans": [[2, 1]], "vocab_size": 96}, ["line 2", "[2, 1]"]),
    "a span of texts": ({"ids": [1, 2], "spans": [["0", "1"]], "vocab_size": 96}, ["line 2", "['0', '1']"]),
    "half a span": ({"ids": [1, 2], "spans": [[1]], "vocab_size": 96}, ["line 2", "[1]"]),
    "no turns at all": ({"messages": []}, ["line 2", "empty list"]),
    "other vocabulary": ({"ids": [1, 2], "spans": [[1, 2]], "vocab_size": 7}, ["line 2", "7", "96", "regenerate"]),
}


@pytest.mark.parametrize(("record", "words"), BAD.values(), ids=BAD)
def test_bad_lines_are_named(tokenizer, tmp_path, record, words):
    with pytest.raises(ValueError, match="d.jsonl") as error:
        load_examples(tokenizer, write(tmp_path / "d.jsonl", {"messages": messages()}, record), 128)
    assert all(word in str(error.value) for word in words), error.value


def test_another_encoding_names_the_line(tokenizer, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps({"messages": messages()}).encode() + b'\n{"messages": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl, line 2: not UTF-8 \(byte 0xe9 at place 17\)"):
        load_examples(tokenizer, [str(path)], 128)


def test_missing_file_and_template(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_examples(tokenizer, [str(tmp_path / "none.jsonl")], 128)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_messages(tokenizer, messages())


def test_what_the_template_refuses_is_named(tokenizer, tmp_path):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer.chat_template = refusal + PLAIN_TEMPLATE
    paths = write(
        tmp_path / "d.jsonl", {"messages": messages()}, {"messages": [{"role": "system", "content": "w1"}, *messages()]}
    )
    with pytest.raises(ValueError, match=r"d\.jsonl, line 2: no system message"):
        load_examples(tokenizer, paths, 128)


def test_a_template_that_rewrites_the_past_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + PLAIN_TEMPLATE
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_messages(tokenizer, messages())


def test_an_epoch_uses_every_example_once_within_the_budget():
    lengths = torch.randint(5, 60, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    plan = epoch_plan(lengths, 256, seed=1, epoch=0)
    assert sorted(i for rows in plan for i in rows) == list(range(300))
    assert all(len(rows) * max(lengths[i] for i in rows) <= 256 for rows in plan)
    padding = sum(len(rows) * max(lengths[i] for i in rows) for rows in plan) / sum(lengths)
    assert padding < 1.15
    assert plan == epoch_plan(lengths, 256, seed=1, epoch=0)
    assert plan != epoch_plan(lengths, 256, seed=1, epoch=1) != epoch_plan(lengths, 256, seed=2, epoch=1)


def test_parts_cover_a_batch():
    parts = split_rows(list(range(7)), 3)
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert split_rows([4], 2) == [[4], []]


def test_rows_are_padded_on_the_right(tokenizer, tmp_path):
    short = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
    batch = collate(load_examples(tokenizer, write(tmp_path / "d.jsonl", {"messages": messages()}, short), 128))
    assert batch.tokens.shape == batch.answer.shape
    assert not batch.answer[1, batch.lengths[1] :].any()
    assert batch.answer.sum(1).tolist() == [5, 2]
