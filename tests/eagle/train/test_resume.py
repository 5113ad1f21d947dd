"""A run that was killed gives the losses of one that was not, and never reads half a checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch

from eagle.train import checkpoint
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import ROOT, losses, read_log


def start(config, path) -> subprocess.Popen:
    path.write_text(json.dumps(asdict(config)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eagle.train", "--config", str(path)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)


def test_a_stopped_run_continues_exactly(settings, tmp_path):
    common = {"save_every": 7, "log_every": 3, "eval_every": 8, "epochs": 2, "steps": None}
    Trainer(settings(tmp_path / "whole", **common)).run()
    stopped = Trainer(settings(tmp_path / "parts", **common))
    real, stopped.step = stopped.step, None

    def step(rows, share):
        if stopped.progress.step == 12:
            raise KeyboardInterrupt
        real(rows, share)

    stopped.step = step
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    Trainer(settings(tmp_path / "parts", **common)).run()
    for a, b in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        a.pop("seconds", None), b.pop("seconds", None)
        assert a == b


def test_kill_9(settings, tmp_path):
    config = settings(tmp_path / "killed", steps=30, save_every=3)
    worker = start(config, tmp_path / "config.json")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed/log.jsonl").exists() or len(losses(tmp_path / "killed")) < 8:
        assert time.monotonic() < deadline and worker.poll() is None
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert worker.returncode == -signal.SIGKILL
    assert checkpoint.directories(tmp_path / "killed/checkpoints")
    Trainer(config).run()
    Trainer(settings(tmp_path / "whole", steps=30, save_every=3)).run()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_half_a_checkpoint_is_not_read(settings, tmp_path, monkeypatch):
    config = settings(tmp_path, steps=10, save_every=4)
    Trainer(config).run()
    whole = [path.name for path in checkpoint.directories(tmp_path / "checkpoints")]
    assert whole == ["step-00000008", "step-00000010"]

    def dies(*args):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        Trainer(settings(tmp_path, steps=14, save_every=4)).run()
    monkeypatch.undo()
    assert [path.name for path in checkpoint.directories(tmp_path / "checkpoints")] == whole
    half = tmp_path / "checkpoints/.step-00000012.tmp"
    assert not half.exists()
    half.mkdir()  # what a kill in the middle of writing leaves
    (half / "head.safetensors").write_bytes(b"half")
    Trainer(settings(tmp_path, steps=14, save_every=4)).run()
    assert len(losses(tmp_path)) == 14
    assert [path.name for path in checkpoint.directories(tmp_path / "checkpoints")] == [
        "step-00000012",
        "step-00000014",
    ]


def test_a_finished_run_goes_on_where_it_ended(settings, tmp_path):
    """With a higher limit, as if that had been the limit from the start (the rate of the last steps aside)."""
    for steps in (5, 9):
        Trainer(settings(tmp_path / "parts", steps=steps, decay=0.0)).run()
    Trainer(settings(tmp_path / "whole", steps=9, decay=0.0)).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_finished_run_stays_finished(settings, tmp_path):
    Trainer(settings(tmp_path, steps=5, eval_every=3)).run()
    log, weights = (tmp_path / "log.jsonl").read_text(), (tmp_path / "model.safetensors").stat().st_mtime_ns
    Trainer(settings(tmp_path, steps=5, eval_every=3)).run()
    assert (tmp_path / "log.jsonl").read_text() == log
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == weights


def test_another_runs_checkpoint_is_refused(settings, tmp_path):
    Trainer(settings(tmp_path, steps=4, save_every=2)).run()
    with pytest.raises(ValueError, match="unroll: was 3, is 2"):
        Trainer(settings(tmp_path, steps=8, save_every=2, unroll=2))


def test_other_data_under_the_same_name_is_refused(settings, tiny_data, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_bytes(tiny_data.read_bytes())
    config = settings(tmp_path / "run", steps=4, save_every=2, data=[str(data)])
    Trainer(config).run()
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:40]))
    with pytest.raises(ValueError, match="begun with 54 conversations, now there are 36"):
        Trainer(config)


def test_processes_that_see_other_checkpoints(settings, tmp_path, monkeypatch):
    """As if a second machine, without the first one's disk, had found none."""
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda accelerator, steps: torch.tensor([*steps.tolist(), 8]))
    with pytest.raises(ValueError, match=r"steps \[0, 8\].*file system that all machines see"):
        Trainer(settings(tmp_path))
