"""What a launch may ask for: the head is copied, the target can be sharded, everything else is refused."""

import pytest
import torch

from eagle.train.distributed import SHARDED_TRAINING, check_launch, shard_layers
from eagle.train.trainer import Trainer


@pytest.mark.parametrize("variable", SHARDED_TRAINING)
def test_a_config_that_shards_the_head_is_refused(variable):
    with pytest.raises(ValueError, match="would shard the head; use a plain multi-process config.*--shard-target true"):
        check_launch({variable: "true"})


def test_the_trainer_refuses_it(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="asks for FSDP"):
        Trainer(settings(tmp_path))


def test_nothing_asked():
    check_launch({"ACCELERATE_USE_FSDP": "false", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"})


def test_one_process_cannot_share():
    with pytest.raises(ValueError, match="shard_target needs several processes.*accelerate launch"):
        shard_layers(None, torch.device("cpu"))


def test_accumulation_is_the_trainers_whatever_the_accelerate_config_says(settings, tmp_path, monkeypatch):
    """accelerate would divide every loss by its own number."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert Trainer(settings(tmp_path)).accelerator.gradient_accumulation_steps == 1
