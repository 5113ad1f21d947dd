"""Whole runs on a tiny target: learning, choosing, golden losses, accumulation."""
import pytest
import torch
from transformers import AutoConfig

from eagle.train.loop import Trainer
from eagle.weights import load_head
from tests.train.conftest import losses, read_log


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
