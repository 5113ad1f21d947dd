"""What an accelerate config asks for, and that nobody else acts on it."""

import base64
import json

import pytest
import torch

from eagle.train.distributed import Sharding, spread_layers, take_request
from eagle.train.trainer import Trainer

FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}
STAGE_3 = base64.urlsafe_b64encode(json.dumps({"zero_optimization": {"stage": 3}}).encode()).decode()
REQUESTS = {
    "FSDP as it comes": (FSDP, True, False),
    "FSDP 1, all": ({**FSDP, "FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}, True, False),
    "by number": ({**FSDP, "FSDP_SHARDING_STRATEGY": "1"}, True, False),
    "gradients": ({**FSDP, "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, False, False),
    "machines": ({**FSDP, "FSDP_SHARDING_STRATEGY": "4"}, True, True),
    "nothing": ({**FSDP, "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, False, False),
    "FSDP 2": ({**FSDP, "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, True, False),
    "FSDP 2, gathered": ({**FSDP, "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}, False, False),
    "stage 2": (DEEPSPEED, False, False),
    "stage 3": ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, True, False),
    "stage 3, encoded": ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": STAGE_3}, True, False),
}


@pytest.mark.parametrize(("environment", "spread", "within_machine"), REQUESTS.values(), ids=REQUESTS)
def test_requests(environment, spread, within_machine):
    environment = dict(environment)
    request = take_request(environment)
    assert (request.spread, request.within_machine) == (spread, within_machine)
    assert ("spread over" in request.describe()) == spread
    assert take_request(environment) is None  # taken: accelerate and transformers see a plain run


def test_a_deepspeed_file(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}))
    assert take_request({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}).spread
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}))
    with pytest.raises(ValueError, match="offload_param device is 'nvme'"):
        take_request({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})


BAD = {
    "strategy": ({**FSDP, "FSDP_SHARDING_STRATEGY": "HALF"}, ["fsdp_sharding_strategy", "HALF", "FULL_SHARD"]),
    "offload": ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, ["fsdp_offload_params", "true", "false", "more processes"]),
    "stage": ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, ["zero stage", "4", "0, 1, 2 or 3"]),
    "no file": ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none.json"}, ["none.json", "cannot be read"]),
    "megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ["Megatron-LM", "plain multi-process config", "FSDP"]),
    "mesh": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", **FSDP}, ["parallelism_config", "plain"]),
}


@pytest.mark.parametrize(("environment", "words"), BAD.values(), ids=BAD)
def test_bad_requests(environment, words):
    with pytest.raises(ValueError) as error:
        take_request(dict(environment))
    assert all(word in str(error.value) for word in words), error.value


def test_nothing_asked():
    assert take_request({"ACCELERATE_USE_FSDP": "false", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}) is None


def test_one_process_cannot_share():
    with pytest.raises(ValueError, match="FSDP FULL_SHARD needs several processes.*accelerate launch"):
        spread_layers(None, torch.device("cpu"), Sharding("FSDP FULL_SHARD"))


def test_accumulation_is_ours_whatever_the_accelerate_config_says(settings, tmp_path, monkeypatch):
    """accelerate would divide every loss by its own number."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert Trainer(settings(tmp_path)).accelerator.gradient_accumulation_steps == 1
