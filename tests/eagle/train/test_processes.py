"""Several processes (gloo) give the losses of one, with a copied and with a sharded target."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest

from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import ROOT, losses

# All runs of a test in the same two processes: most of a worker's time is its imports.
WORKER = """
import json, sys
from eagle.train.config import from_dict
from eagle.train.trainer import Trainer
from eagle.train.distributed import is_sharded
for path in sys.argv[1:]:
    run = json.load(open(path))
    trainer = Trainer(from_dict(run["settings"]))
    assert is_sharded(trainer.target) == run["sharded"], path
    assert not is_sharded(trainer.head), path
    trainer.run()
"""
COMMON = {"batch_tokens": 400, "warmup": 20, "steps": 8, "decay": 0.0}
TREES = {"eval_prompts": 2, "eval_tokens": 4, "eval_nodes": 4, "eval_depth": 2}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_give_the_losses_of_one(settings, tmp_path):
    """A copied target, stopped and continued with accumulation; a sharded one, with trees and a cache."""
    runs = {
        "begun": (False, {"steps": 5, "save_every": 2, "output": str(tmp_path / "copied")}),
        "copied": (False, {"save_every": 2, "accumulation": 2}),
        "sharded": (True, {"shard_target": True, **TREES}),
        "sharded and cached": (True, {"shard_target": True, "feature_cache": str(tmp_path / "cache")}),
    }
    paths = []
    for name, (sharded, changes) in runs.items():
        run = asdict(settings(**{"output": tmp_path / name, **COMMON, **changes}))
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"sharded": sharded, "settings": run}))
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


LAUNCH_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_ip: 127.0.0.1
main_process_port: {port}
mixed_precision: "no"
{more}"""


def launch(kind: str, more: str, run, tmp_path) -> subprocess.CompletedProcess:
    """As a user starts it: `accelerate launch --config_file C -m eagle.train --config F`."""
    settings, config = tmp_path / "run.json", tmp_path / f"{kind}.yaml"
    settings.write_text(json.dumps(asdict(run)))
    config.write_text(LAUNCH_CONFIG.format(kind=kind, port=free_port(), more=more))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", "eagle.train"]
    return subprocess.run(
        [*map(str, command), "--config", str(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=600,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_an_fsdp_config_is_refused_in_one_sentence(settings, tmp_path):
    done = launch("FSDP", "fsdp_config:\n  fsdp_version: 2\n", settings(tmp_path / "two", **COMMON), tmp_path)
    assert done.returncode != 0
    assert "error: the accelerate config asks for FSDP, which would shard the head" in done.stderr
    assert not (tmp_path / "two").exists()
