"""Data and chat templates: keywords, templates that rewrite earlier turns, padded vocabularies, odd conversations."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from eagle.train import regenerate
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import load_examples, read_messages
from eagle.train.setup import split_examples

# Earlier answers keep their last word only, as Qwen3's template takes the thinking out; `short` is a keyword.
REWRITES = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|> {{ m.content }} <|end|>"
    "{% else %}<|assistant|> "
    "{% if loop.last %}{{ m.content }}{% else %}{{ (' ' + m.content).split(' ')[-1] }}{% endif %}"
    " <|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if short %} w1{% endif %}{% endif %}"
)


@pytest.fixture
def target(tiny_target, tmp_path):
    """The tiny target with that template, and four rows of its vocabulary that are no tokens and most likely."""
    place = shutil.copytree(tiny_target, tmp_path / "target")
    model = LlamaForCausalLM.from_pretrained(place)
    model.resize_token_embeddings(100)
    with torch.no_grad():
        model.lm_head.weight[96:] = 30 * model.lm_head.weight[:4]
    model.save_pretrained(place)
    (place / "chat_template.jinja").write_text(REWRITES)
    return place


def write(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def talk(*texts) -> dict:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


def run(target, data, output, *more, status=0) -> list[dict]:
    arguments = ["--target", target, "--output", output, "--max-new-tokens", 8, "--batch", 4, "--dtype", "float32"]
    assert regenerate.main([str(argument) for argument in [*arguments, "--data", data, *more]]) == status
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def test_every_turn_is_answered_where_the_template_rewrites_earlier_ones(target, tmp_path):
    data = write(tmp_path / "d.jsonl", talk("w1 w2", "w3", "w4", "w5", "w6", "w7"))
    records = run(target, data, tmp_path / "out.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert sum(len(record["spans"]) for record in records) == 3
    assert [m["content"] for m in records[-1]["messages"]][::2] == ["w1 w2", "w4", "w6"]
    assert len(records[-1]["messages"]) == 6
    for record in records:  # what stands before an answer is what the template gives for the messages before it
        first = sum(message["role"] == "user" for message in record["messages"]) - len(record["spans"])
        (begin, _) = record["spans"][0]
        prompt = tokenizer.apply_chat_template(
            record["messages"][: 2 * first + 1], tokenize=False, add_generation_prompt=True
        )
        assert record["ids"][:begin] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    examples = load_examples(tokenizer, [str(tmp_path / "out.jsonl")], 128)
    assert sum(sum(example.answer) for example in examples) == sum(b - a for r in records for a, b in r["spans"])


def test_rows_that_pad_the_vocabulary_are_never_sampled(target, tmp_path):
    data = write(tmp_path / "d.jsonl", *(talk(f"w{i}", "w3") for i in range(20)))
    for number, temperature in enumerate(("0", "1")):
        records = run(target, data, tmp_path / f"{number}.jsonl", "--temperature", temperature)
        assert len(records) == 20
        assert max(max(record["ids"]) for record in records) < 96
        assert load_examples(AutoTokenizer.from_pretrained(target), [str(tmp_path / f"{number}.jsonl")], 128)


def test_keywords_are_recorded_and_have_to_agree(target, tmp_path, capsys):
    data, output = write(tmp_path / "d.jsonl", talk("w1 w2", "w3"), talk("w4", "w5")), tmp_path / "out.jsonl"
    given = ["--chat-template-kwargs", '{"short": true}']
    records = run(target, data, output, *given)
    assert all(record["chat_template_kwargs"] == {"short": True} for record in records)
    tokenizer = AutoTokenizer.from_pretrained(target)
    word = tokenizer.convert_tokens_to_ids("w1")
    assert all(record["ids"][record["spans"][0][0] - 1] == word for record in records)
    run(target, data, output, status=2)
    assert "chat_template_kwargs: was {'short': True}, is {}" in capsys.readouterr().err
    run(target, data, tmp_path / "b.jsonl", "--chat-template-kwargs", '{"long": 1}', status=2)
    assert "keyword 'long': the target's chat template does not read it" in capsys.readouterr().err
    config = TrainConfig(target=str(target), data=[str(output)], chat_template_kwargs={"short": True})
    assert len(split_examples(config, tokenizer, 128)[0]) == 1
    with pytest.raises(ValueError, match=r"out.jsonl, line 1: ids were sampled with chat template keywords {'short'"):
        load_examples(tokenizer, [str(output)], 128)


def test_conversations_that_begin_with_the_assistant_are_left_out_and_counted(target, tmp_path, capsys):
    begins = {"conversations": [{"from": "gpt", "value": "w1"}, {"from": "human", "value": "w2"}]}
    path = write(tmp_path / "d.jsonl", talk("w1", "w2 w3 w4"), begins, begins)
    assert len(read_messages([path])) == 1
    assert f"{path}: 2 conversations begin with the assistant, left out" in capsys.readouterr().err
    assert len(load_examples(AutoTokenizer.from_pretrained(target), [path], 128)) == 1
    assert "2 conversations begin with the assistant" in capsys.readouterr().err


def test_half_a_surrogate_pair_names_file_and_line(target, tmp_path, capsys):
    path = write(tmp_path / "d.jsonl", talk("w1", "w2 w3 w4"), talk("so \ud83d", "w2"))
    with pytest.raises(ValueError, match=r"d.jsonl, line 2: turn 0 \(user\) holds half of a surrogate pair"):
        load_examples(AutoTokenizer.from_pretrained(target), [path], 128)
    run(target, path, tmp_path / "out.jsonl", status=2)
    assert "d.jsonl, line 2: turn 0 (user) holds half of a surrogate pair" in capsys.readouterr().err
