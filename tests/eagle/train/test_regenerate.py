"""Sampling answers with the target: the law, resuming, several turns."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle.train.data import regenerate
from eagle.train.data.conversations import load_examples


@pytest.fixture(scope="module")
def model(tiny_target):
    return AutoModelForCausalLM.from_pretrained(tiny_target).eval()


def run(monkeypatch, target, data, output, *more) -> list[dict]:
    arguments = [
        "--target",
        target,
        "--data",
        data,
        "--output",
        output,
        "--max-new-tokens",
        20,
        "--batch",
        8,
        "--dtype",
        "fp32",
        *more,
    ]
    monkeypatch.setattr(sys, "argv", ["regenerate", *map(str, arguments)])
    regenerate.main()
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_greedy_answers_are_the_models_own(model):
    prompts = [[1, 3, 20, 21, 5, 4], [1, 3, 40, 5, 4], [1, 3, 30, 31, 32, 33, 5, 4]]
    ends = torch.tensor([5])
    found = regenerate.sample(model, prompts, 12, [0.0] * 3, ends, torch.Generator())
    for prompt, answer in zip(prompts, found, strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=5)
        assert answer == alone[0, len(prompt) :].tolist()


def test_samples_follow_the_law(model):
    prompt, n = [1, 3, 20, 21, 5, 4], 4000
    found = regenerate.sample(model, [prompt] * n, 1, [1.0] * n, torch.tensor([5]), torch.Generator().manual_seed(0))
    law = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=96)
    likely = law * n > 5
    chi2 = ((counts - law * n) ** 2 / (law * n))[likely].sum()
    assert chi2 < likely.sum() + 4 * (2 * likely.sum()) ** 0.5  # false alarm about 1 in 10^4, fixed seed


def test_every_prompt_has_its_own_temperature(model):
    prompt, n, temperatures = [1, 3, 20, 21, 5, 4], 6000, [0.0, 0.5, 1.0]
    drawn = regenerate.sample(
        model, [prompt] * n, 1, temperatures * (n // 3), torch.tensor([5]), torch.Generator().manual_seed(0)
    )
    logits = model(torch.tensor([prompt])).logits[0, -1]
    tokens = torch.tensor(drawn).view(-1, 3)
    assert (tokens[:, 0] == logits.argmax()).all()
    for column, temperature in enumerate(temperatures[1:], 1):
        law = (logits / temperature).softmax(-1)
        counts, expected = torch.bincount(tokens[:, column], minlength=96), law * len(tokens)
        likely = expected > 5
        chi2 = ((counts - expected) ** 2 / expected)[likely].sum()
        assert chi2 < likely.sum() + 4 * (2 * likely.sum()) ** 0.5  # false alarm about 1 in 10^4, fixed seed


def test_a_killed_run_continues_with_the_same_lines(monkeypatch, tiny_target, tiny_data, tmp_path):
    whole = run(monkeypatch, tiny_target, tiny_data, tmp_path / "whole.jsonl")
    calls, real = [], regenerate.regenerate_batch

    def dies_in_the_fourth_batch(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(regenerate, "regenerate_batch", dies_in_the_fourth_batch)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tiny_target, tiny_data, tmp_path / "again.jsonl")
    assert not (tmp_path / "again.jsonl").exists()
    assert run(monkeypatch, tiny_target, tiny_data, tmp_path / "again.jsonl") == whole
    assert len(calls) == 4 + 60 // 8 + 1 - 3
    assert not (tmp_path / "again.jsonl.parts").exists()


def test_other_settings_do_not_mix(monkeypatch, tiny_target, tiny_data, tmp_path):
    run(monkeypatch, tiny_target, tiny_data, tmp_path / "out.jsonl", "--minutes", 0)
    with pytest.raises(ValueError, match="other settings"):
        run(monkeypatch, tiny_target, tiny_data, tmp_path / "out.jsonl", "--seed", 1)


def test_several_turns_and_exact_ids(monkeypatch, tiny_target, tmp_path):
    turns = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6")]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    (record,) = run(monkeypatch, tiny_target, data, tmp_path / "out.jsonl")
    assert [m["role"] for m in record["messages"]] == [role for role, _ in turns]
    assert len(record["spans"]) == 2
    tokenizer = AutoTokenizer.from_pretrained(tiny_target)
    (example,) = load_examples(tokenizer, [str(tmp_path / "out.jsonl")], 128)
    assert list(example.ids) == record["ids"]
    assert sum(example.answer) == sum(b - a for a, b in record["spans"])
    assert tokenizer.decode(record["ids"]).count("<|assistant|>") == 2


def test_a_bad_line_is_named(monkeypatch, tiny_target, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"conversations": [{"from": "human", "value": "w1"}]}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl, line 1: no assistant turn"):
        run(monkeypatch, tiny_target, data, tmp_path / "out.jsonl")
