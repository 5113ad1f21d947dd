"""Sampling answers with the target: resuming, several turns, self-written prompts, and what is refused."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from eagle import EagleModel
from eagle.train import regenerate
from eagle.train.data import endpoint
from eagle.train.data.conversations import load_examples
from eagle.train.data.overlap import Overlap
from eagle.train.data.provenance import Journal
from eagle.train.data.self_prompts import user_turn
from tests.eagle.serve.running import running


def run(target, data, output, *more, status=0) -> list[dict]:
    """Lines of the output of one call of the command, which must end with `status`."""
    arguments = ["--target", target, "--output", output, "--max-new-tokens", 20, "--batch", 8, "--dtype", "float32"]
    if data is not None:
        arguments += ["--data", data]
    assert regenerate.main([str(argument) for argument in [*arguments, *more]]) == status
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


@pytest.fixture(scope="module")
def whole(tiny_target, tiny_data, tmp_path_factory):
    """The output of an uninterrupted run over 60 conversations."""
    return run(tiny_target, tiny_data, tmp_path_factory.mktemp("whole") / "out.jsonl")


def test_questions_stay_and_the_order_is_the_datas(whole, tiny_data):
    asked = [json.loads(line)["messages"][0] for line in tiny_data.read_text().splitlines()]
    assert [record["messages"][0] for record in whole] == asked


@pytest.mark.parametrize("batch", [1, 60])
def test_the_batch_size_does_not_change_the_lines(tiny_target, tiny_data, tmp_path, whole, batch):
    found = run(tiny_target, tiny_data, tmp_path / "out.jsonl", "--batch", batch, "--limit", 12)
    assert found == whole[:12]


def test_a_killed_run_continues_with_the_same_lines(monkeypatch, capsys, tiny_target, tiny_data, tmp_path, whole):
    real, calls = Journal.append, []

    def dies_after_twenty(journal, number, value):
        if len(calls) == 20:
            raise KeyboardInterrupt
        calls.append(number)
        real(journal, number, value)

    output = tmp_path / "again.jsonl"
    monkeypatch.setattr(Journal, "append", dies_after_twenty)
    run(tiny_target, tiny_data, output, status=130)
    assert "again.jsonl.part; the same command continues" in capsys.readouterr().err
    assert not output.exists()
    with (tmp_path / "again.jsonl.part").open("a") as file:
        file.write('{"number": 59, "val')  # killed in the middle of a line
    monkeypatch.undo()
    assert run(tiny_target, tiny_data, output) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.jsonl", "again.jsonl.settings.json"]


def test_minutes_end_a_run_that_then_continues(capsys, tiny_target, tiny_data, tmp_path, whole):
    output = tmp_path / "out.jsonl"
    assert run(tiny_target, tiny_data, output, "--minutes", 0) == []
    assert "the same command continues" in capsys.readouterr().out
    assert run(tiny_target, tiny_data, output) == whole


def test_a_complete_output_is_left_alone(capsys, tiny_target, tiny_data, tmp_path):
    output = tmp_path / "out.jsonl"
    run(tiny_target, tiny_data, output, "--limit", 3)
    written = output.stat().st_mtime_ns
    run(tiny_target, tiny_data, output, "--limit", 3)
    assert "complete; remove it" in capsys.readouterr().out
    assert output.stat().st_mtime_ns == written


@pytest.mark.parametrize("minutes", [["--minutes", 0], []], ids=["incomplete", "complete"])
def test_another_origin_is_refused(capsys, tiny_target, tiny_data, tmp_path, minutes):
    """Settings, data and target of an output cannot change, be it complete or not."""
    data, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    lines = tiny_data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:4]))
    target = tmp_path / "target"
    target.mkdir()
    for path in tiny_target.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    before = run(target, data, output, *minutes)

    def refused(words: str, *more) -> None:
        assert run(target, data, output, *minutes, *more, status=2) == before
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "was sampled with other settings, data or target" in error
        assert words in error

    refused("seed: was 0, is 1", "--seed", 1)
    refused("temperature: was [1.0], is [0.0, 0.6]", "--temperature", 0, 0.6)
    data.write_text("".join(lines[1:5]))
    refused("data: was ")
    data.write_text("".join(lines[:4]))
    weights = target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused("target: was ")


def test_an_output_of_unknown_origin_is_refused(capsys, tiny_target, tiny_data, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"ids": []}\n')
    run(tiny_target, tiny_data, tmp_path / "out.jsonl", status=2)
    assert "out.jsonl exists without out.jsonl.settings.json" in capsys.readouterr().err


BAD = {
    "temperature": (["--temperature", "-1"], "--temperature -1: expected a number, 0 or more"),
    "no temperature": (["--temperature", "0", "nan"], "--temperature nan: expected a number, 0 or more"),
    "no tokens": (["--max-new-tokens", "0"], "--max-new-tokens 0: expected a whole number, 1 or more"),
    "no rows": (["--batch", "0"], "--batch 0: expected a whole number, 1 or more"),
    "no conversations": (["--limit", "0"], "--limit 0: expected a whole number, 1 or more"),
    "minutes": (["--minutes", "nan"], "--minutes nan: expected a number, 0 or more"),
    "prompts": (["--self-prompts", "-1"], "--self-prompts -1: expected a whole number, 0 or more"),
    "excluded": (["--exclude", "none.jsonl"], "'none.jsonl': cannot be read"),
    "target": (
        ["--target", "none/such"],
        "target 'none/such' (no directory here, taken for a hub id) cannot be loaded",
    ),
}


@pytest.mark.parametrize(("more", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_end_with_one_line(monkeypatch, capsys, tiny_target, tiny_data, tmp_path, more, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run(tiny_target, tiny_data, tmp_path / "out.jsonl", *more, status=2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line


def test_nothing_to_answer(capsys, tiny_target, tmp_path):
    run(tiny_target, None, tmp_path / "out.jsonl", status=2)
    assert "give --data F..., --self-prompts N, or both" in capsys.readouterr().err


def test_several_turns_and_exact_ids(tiny_target, tmp_path):
    turns = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6")]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    (record,) = run(tiny_target, data, tmp_path / "out.jsonl")
    assert [m["role"] for m in record["messages"]] == [role for role, _ in turns]
    assert len(record["spans"]) == 2
    tokenizer = AutoTokenizer.from_pretrained(tiny_target)
    (example,) = load_examples(tokenizer, [str(tmp_path / "out.jsonl")], 128)
    assert list(example.ids) == record["ids"]
    assert sum(example.answer) == sum(b - a for a, b in record["spans"])
    assert tokenizer.decode(record["ids"]).count("<|assistant|>") == 2


def test_a_bad_line_is_named(capsys, tiny_target, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"conversations": [{"from": "human", "value": "w1"}]}\n')
    run(tiny_target, data, tmp_path / "out.jsonl", status=2)
    assert "data.jsonl, line 1: no assistant turn" in capsys.readouterr().err


def test_where_a_user_turn_begins(tiny_target):
    tokenizer = AutoTokenizer.from_pretrained(tiny_target)
    prefix, ends = user_turn(tokenizer)
    assert tokenizer.convert_ids_to_tokens(prefix) == ["<|bos|>", "<|user|>"]
    assert tokenizer.convert_ids_to_tokens(sorted(ends)) == ["<|end|>"]
    tokenizer.chat_template = "{{ messages[0]['content'] | lower }}"
    with pytest.raises(ValueError, match="changes a user's text"):
        user_turn(tokenizer)


def test_prompts_of_its_own(monkeypatch, capsys, tiny_target, tiny_data, tmp_path):
    """They are appended to the data, and the same whether the run was killed or not."""
    options = ["--limit", 2, "--self-prompts", 30, "--prompt-tokens", 40]
    first = run(tiny_target, tiny_data, tmp_path / "a.jsonl", *options)
    assert len(first) > 2 + 2
    prompts = [record["messages"][0]["content"] for record in first[2:]]
    assert all(prompts)
    assert len(set(prompts)) == len(prompts)
    assert "prompts of its own; dropped: " in capsys.readouterr().out
    real, calls = Journal.append, []

    def dies(journal, number, value):
        calls.append(number)
        if len(calls) in (11, 34):
            raise KeyboardInterrupt
        real(journal, number, value)

    monkeypatch.setattr(Journal, "append", dies)
    output = tmp_path / "b.jsonl"
    run(tiny_target, tiny_data, output, *options, "--batch", 3, status=130)
    run(tiny_target, tiny_data, output, *options, "--batch", 3, status=130)
    assert run(tiny_target, tiny_data, output, *options) == first


def test_prompts_that_share_thirteen_words_are_dropped(capsys, tiny_target, tmp_path):
    words = [f"w{i}" for i in range(20)]
    evaluation = tmp_path / "test.jsonl"
    evaluation.write_text(json.dumps({"turns": ["Before", f"And, {' '.join(words[:13]).upper()}!"]}) + "\n")
    texts = [" ".join(words[:13]), " ".join(words[1:13] + words[:1]), " ".join(words[:12]), " ".join(words)]
    data = tmp_path / "data.jsonl"
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "w1"}] for text in texts]
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found = run(tiny_target, data, tmp_path / "out.jsonl", "--exclude", evaluation)
    assert [record["messages"][0]["content"] for record in found] == texts[1:3]
    assert "2 prompts dropped: 13 words in a row shared with --exclude files" in capsys.readouterr().out


def test_texts_of_any_file_count(tmp_path):
    words = " ".join(f"w{i}" for i in range(13))
    (tmp_path / "a.txt").write_text(f"Q: {words}\nA: x")
    assert Overlap([tmp_path / "a.txt"]).shares(f"please {words}")
    assert not Overlap([]).shares(words)
    (tmp_path / "b.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"b\.gz': cannot be read as text"):
        Overlap([tmp_path / "b.gz"])


@pytest.fixture(scope="module")
def served(tiny_target):
    """The address of a server that has the tiny target in float32, decoding plainly, and its model."""
    model = EagleModel.from_pretrained(str(tiny_target), None, dtype=torch.float32)
    with running(model, {"tree": "none"}) as (url, _):
        yield f"{url}/v1", model


def ask_server(target, url, data, output, *more, status=0):
    arguments = ["--target", target, "--output", output, "--max-new-tokens", 20, "--batch", 8, "--endpoint", url]
    arguments += ["--data", data] if data else []
    assert regenerate.main([str(argument) for argument in [*arguments, *more]]) == status
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def test_a_server_answers_as_the_target_does(served, tiny_target, tiny_data, tmp_path):
    """Greedy answers are those sampled here, in the same form; at temperature 1 they continue with the same lines."""
    here = run(tiny_target, tiny_data, tmp_path / "here.jsonl", "--temperature", 0, "--limit", 12)
    there = ask_server(tiny_target, served[0], tiny_data, tmp_path / "a.jsonl", "--temperature", 0, "--limit", 12)
    assert there == here
    once = ask_server(tiny_target, served[0], tiny_data, tmp_path / "b.jsonl", "--limit", 12)
    assert ask_server(tiny_target, served[0], tiny_data, tmp_path / "c.jsonl", "--limit", 12, "--batch", 1) == once
    assert once != there


def test_a_servers_target_writes_prompts(served, tiny_target, tmp_path):
    """Prompts end with the token that ends a user's turn, which is none of the target's end tokens."""
    found = ask_server(tiny_target, served[0], None, tmp_path / "a.jsonl", "--self-prompts", 20)
    assert len(found) >= 5
    assert all(record["messages"][0]["content"] for record in found)


def test_a_server_that_is_not_one(served, tiny_target, tiny_data, tmp_path, capsys, monkeypatch):
    """No server, no such model, and settings that are the server's."""
    monkeypatch.setattr(endpoint, "PAUSE", 0)
    for url in ("http://127.0.0.1:9/v1", "nonsense", served[0].removesuffix("/v1")):
        ask_server(tiny_target, url, tiny_data, tmp_path / "out.jsonl", status=2)
        assert "is this the address of an OpenAI-compatible server?" in capsys.readouterr().err
    ask_server(tiny_target, served[0], tiny_data, tmp_path / "out.jsonl", "--endpoint-model", "gpt", status=2)
    assert "--endpoint-model gpt" in capsys.readouterr().err
    ask_server(tiny_target, served[0], tiny_data, tmp_path / "out.jsonl", "--dtype", "float32", status=2)
    assert "--dtype and --device-map are the server's" in capsys.readouterr().err
