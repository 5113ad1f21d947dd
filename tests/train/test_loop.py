"""A whole run on a tiny target."""
import json

import torch
from transformers import AutoConfig

from eagle.train.config import TrainConfig
from eagle.train.loop import Trainer
from eagle.weights import load_head


def settings(tiny_target, tiny_data, output, **changes) -> TrainConfig:
    return TrainConfig(**{
        "target": str(tiny_target), "data": [str(tiny_data)], "output": str(output), "unroll": 3, "batch_tokens": 160,
        "steps": 40, "precision": "no", "lr": 3e-3, "warmup": 5, "log_every": 1, "eval_every": 20, "save_every": 20,
        "eval_examples": 8, "held_out_share": 0.1, **changes,
    })


def test_a_run_learns_and_exports_a_head(tiny_target, tiny_data, tmp_path):
    Trainer(settings(tiny_target, tiny_data, tmp_path)).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert [row["step"] for row in rows if "held_out" in row] == [20, 40]
    head = load_head(tmp_path, AutoConfig.from_pretrained(tiny_target))
    assert head.fc.weight.dtype == torch.bfloat16
