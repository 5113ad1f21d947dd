"""Several processes (gloo) give the losses of one, whatever the accelerate config spreads over them."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest
from transformers import AutoConfig

from eagle.checkpoints.load import load_head
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import ROOT, losses

# All runs of a test in the same two processes: most of a worker's time is its imports.
WORKER = """
import json, os, sys
from eagle.train.config import from_dict
from eagle.train.trainer import Trainer
from eagle.train.distributed import is_spread
for path in sys.argv[1:]:
    run = json.load(open(path))
    os.environ.update(run["environment"])
    trainer = Trainer(from_dict(run["settings"]))
    assert is_spread(trainer.target) == run["spread"], path
    assert not is_spread(trainer.head), path
    trainer.run()
"""
COMMON = {"batch_tokens": 400, "warmup": 20, "steps": 8, "decay": 0.0}
TRIAL = {"eval_prompts": 2, "eval_tokens": 4, "eval_nodes": 4, "eval_depth": 2}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_give_the_losses_of_one(settings, tmp_path):
    """A copied target, stopped and continued with accumulation; then its layers spread in every way that can be asked
    for, with a drafting trial and a feature cache."""
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    hybrid = {"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD", "LOCAL_WORLD_SIZE": "1"}
    runs = {
        "begun": (False, {}, {"steps": 5, "save_every": 2, "output": str(tmp_path / "copied")}),
        "copied": (False, {}, {"save_every": 2, "accumulation": 2}),
        "spread": (True, {}, {"shard_target": True, **TRIAL}),
        "spread and cached": (True, {}, {"shard_target": True, "feature_cache": str(tmp_path / "cache")}),
        "DeepSpeed": (True, deepspeed, {}),
        "machines": (True, hybrid, {}),
    }
    paths = []
    for name, (spread, environment, changes) in runs.items():
        run = asdict(settings(**{"output": tmp_path / name, **COMMON, **changes}))
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"spread": spread, "environment": environment, "settings": run}))
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, paths)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    Trainer(settings(tmp_path / "one", **COMMON)).run()
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    for name in runs.keys() - {"begun"}:
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-4), name


FSDP_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_ip: 127.0.0.1
main_process_port: {port}
mixed_precision: "no"
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
"""


def test_an_fsdp_config_spreads_the_target_and_copies_the_head(tiny_target, settings, tmp_path):
    """As a user starts it: `accelerate launch --config_file C -m eagle.train --config F`."""
    run, config = tmp_path / "run.json", tmp_path / "fsdp.yaml"
    run.write_text(json.dumps(asdict(settings(tmp_path / "two", **COMMON))))
    config.write_text(FSDP_CONFIG.format(port=free_port()))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "eagle.train"]
    done = subprocess.run(
        [*map(str, command), "--config", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FSDP 2, reshard_after_forward true: the target's layers are spread over the processes" in done.stdout
    Trainer(settings(tmp_path / "one", **COMMON)).run()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    target_config = AutoConfig.from_pretrained(tiny_target)
    one, two = (load_head(tmp_path / name, target_config).state_dict() for name in ("one", "two"))
    assert all(one[name].shape == two[name].shape for name in one)
