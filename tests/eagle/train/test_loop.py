"""Whole runs on a tiny target: learning, choosing, golden losses, accumulation."""

import re

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from eagle.checkpoints.load import load_head
from eagle.train.data.conversations import Example, collate
from eagle.train.evaluation.drafted_trees import TreeEvaluation
from eagle.train.evaluation.plot import main as plot_command
from eagle.train.setup import frequent_tokens
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import losses, read_log, tiny_tokenizer


def test_a_run_learns_and_exports_the_best_head(tiny_target, settings, tmp_path):
    config = settings(tmp_path, steps=40, eval_every=20, eval_prompts=4, eval_tokens=8, eval_nodes=8, eval_depth=3)
    Trainer(config).run()
    found = losses(tmp_path)
    assert len(found) == 40
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    trials = {row["step"]: row["expected_accepted"] for row in read_log(tmp_path) if "held_out" in row}
    assert list(trials) == [20, 40]
    head = load_head(tmp_path, AutoConfig.from_pretrained(tiny_target))
    last = load_head(tmp_path / "last", AutoConfig.from_pretrained(tiny_target))
    assert head.fc.weight.dtype == torch.bfloat16
    assert torch.equal(head.fc.weight, last.fc.weight) == (trials[40] > trials[20])


@pytest.mark.parametrize("changes", [{"accumulation": 2}, {"checkpointing": True}], ids=str)
def test_accumulation_and_checkpointing_change_nothing(settings, tmp_path, changes):
    Trainer(settings(tmp_path / "a", batch_tokens=400, warmup=20)).run()
    Trainer(settings(tmp_path / "b", batch_tokens=400, warmup=20, **changes)).run()
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-4)


def test_a_small_draft_vocabulary(tiny_target, settings, tmp_path):
    Trainer(settings(tmp_path, steps=30, draft_vocab_size=60, acceptance_weight=0.5)).run()
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.97 * sum(found[:5])
    head = load_head(tmp_path, AutoConfig.from_pretrained(tiny_target))
    assert head.t2d.sum() == 60


def test_batches_too_small_for_the_parts(settings, tmp_path):
    with pytest.raises(ValueError, match="batch_tokens is 40"):
        Trainer(settings(tmp_path, batch_tokens=40, accumulation=4))


def test_the_best_head_is_the_one_with_most_accepted(tiny_target, settings, tmp_path, monkeypatch):
    """Not the one with the smallest loss, which falls all along."""
    values = iter([2.5, 3.0, 2.0])
    monkeypatch.setattr(TreeEvaluation, "expected_accepted", lambda trial, head: next(values))
    trainer = Trainer(settings(tmp_path, steps=30, eval_every=10, save_every=10, keep=3, eval_prompts=1))
    trainer.run()
    assert next(values, None) is None
    assert sum(losses(tmp_path)[20:]) < sum(losses(tmp_path)[10:20])
    kept = load_file(tmp_path / "checkpoints/step-00000020/head.safetensors")
    best = load_head(tmp_path, AutoConfig.from_pretrained(tiny_target)).state_dict()
    assert all(torch.equal(best[name], kept[name].to(best[name].dtype)) for name in best)
    number = r"\d\.\d{3}"
    assert re.fullmatch(
        rf"loss {number}, 1-TV by step {number} {number} {number}, E\[accepted\] held out 3\.000 \(best 3\.000\)",
        trainer.log.bar.postfix,
    )
    again = Trainer(settings(tmp_path, steps=31, eval_every=10, save_every=10, keep=3, eval_prompts=1)).log
    assert (again.expected, again.progress.best) == (2.0, 3.0)


def test_the_loss_weighs_step_i_by_its_power(settings, tmp_path):
    trainer = Trainer(settings(tmp_path, steps=1, step_decay=0.8, unroll=3))
    trainer.run()
    rows = [0, 1, 2]
    loss, sums = trainer.losses(rows, collate([trainer.train_set[i] for i in rows]))
    weights = torch.tensor([1, 0.8, 0.64]) / 2.44
    torch.testing.assert_close(loss, (weights * sums[:, 1]).sum())


def test_curves_are_drawn(settings, tmp_path):
    Trainer(settings(tmp_path, steps=6, eval_every=3)).run()
    picture = imread(tmp_path / "curves.png")
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[-1]).tolist()}) > 50  # not a blank page
    (tmp_path / "curves.png").unlink()
    assert plot_command([str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").exists()
    assert plot_command([str(tmp_path / "none")]) == 2


def test_the_draft_vocabulary_is_what_answers_say_most():
    said = Example([9, 7, 7, 3, 3, 3, 8], [False, True, True, True, True, True, False])
    assert frequent_tokens([said], 2, 12).tolist() == [3, 7]
    assert frequent_tokens([said], 4, 12).tolist() == [0, 1, 3, 7]  # then by id; prompts do not count


def test_a_target_that_cannot_be_decoded_is_not_trained_for(settings, tmp_path):
    shape = {"vocab_size": 96, "n_embd": 16, "n_layer": 4, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="'gpt2' is not supported.*known: .*llama"):
        Trainer(settings(tmp_path / "run", target=str(tmp_path / "gpt2")))
