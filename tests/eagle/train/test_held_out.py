"""The command that states held-out sum of min(p, q): against the definition, with digests, and what is refused."""

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle.checkpoints.load import save_head
from eagle.train.data.conversations import collate
from eagle.train.data.features import OnlineFeatures
from eagle.train.evaluation.agreement import evaluate, standard_errors
from eagle.train.evaluation.held_out import main
from eagle.train.setup import build_head, load_pretrained, split_examples


@pytest.fixture
def head(settings, tiny_target, tmp_path):
    """A fresh head with a small draft vocabulary, saved."""
    target = AutoModelForCausalLM.from_pretrained(tiny_target)
    fresh = build_head(settings(tmp_path, draft_vocab_size=60), target, [])
    maps = dict(fresh.named_buffers())
    maps["d2t"].fill_(1)  # tokens 1 .. 60: a map of zeros is refused
    maps["t2d"].copy_(maps["t2d"].roll(1))
    save_head(fresh, tmp_path / "head", 6)
    return tmp_path / "head"


def test_table_and_json(head, settings, tiny_target, tiny_data, tmp_path, capsys):
    short = tmp_path / "short.jsonl"
    short.write_text("".join(tiny_data.read_text().splitlines(keepends=True)[:7]))
    arguments = [tiny_target, head, "--data", tiny_data, short, "--steps", 3, "--json", tmp_path / "out.json"]
    assert main([*map(str, arguments), "--batch-tokens", "100"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["conversations"] for row in found] == [60, 7]
    for row, path in zip(found, (tiny_data, short), strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["sha256"] == digest
        assert f"sha256 {digest}  {path}" in printed
        cells = [f"{a:.3f} +- {e:.3f}" for a, e in zip(row["min_p_q"], row["standard_error"], strict=True)]
        assert f"| {path} | {row['conversations']} | {row['positions']} | {' | '.join(cells)} |" in printed
    # the same numbers as the trainer's evaluation, whatever the batches
    target, tokenizer = load_pretrained(str(tiny_target), torch.float32)
    config = settings(tmp_path, held_out=[str(short)], init_from=str(head), eval_examples=64)
    _, examples = split_examples(config, tokenizer, 128)
    trained = build_head(config, target, [])
    report = evaluate(trained, OnlineFeatures(target, trained.config.taps), [collate(examples)], 3)
    assert found[1]["min_p_q"] == pytest.approx(report.accepted, abs=2e-4)
    assert found[1]["top1_agreement"] == pytest.approx(report.agree, abs=2e-4)
    assert (found[1]["positions"], found[1]["chain"]) == (report.positions, pytest.approx(report.chain, abs=2e-4))


def test_the_standard_error_is_that_of_conversations():
    """With one position each it is that of the mean; repeated conversations shrink it."""
    values = torch.tensor([0.2, 0.5, 0.9, 0.4])
    sums = torch.stack([torch.ones(4), values, values, values], -1)[:, None]
    assert standard_errors(sums) == pytest.approx([values.std().item() / 2])
    assert standard_errors(sums.repeat(4, 1, 1))[0] < 0.55 * standard_errors(sums)[0]
    assert standard_errors(sums[:1])[0] != standard_errors(sums[:1])[0]  # NaN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": "none.jsonl"}, "'none.jsonl': cannot be read"),
        ({"--steps": "0"}, "--steps 0: expected a whole number, 1 or more"),
        ({"head": "none/such"}, "none/such"),
    ],
)
def test_errors_are_one_line(head, tiny_target, tiny_data, monkeypatch, capsys, changes, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"head": str(head), "--data": str(tiny_data), "--steps": "2", **changes}
    assert main([str(tiny_target), given.pop("head"), *(text for pair in given.items() for text in pair)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line
