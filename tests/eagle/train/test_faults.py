"""Faults of a run: each ends with one line that names what failed, and nothing good is lost."""

import errno
import json
import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from eagle.files import sole_writer
from eagle.train import __main__ as command
from eagle.train import checkpoint
from eagle.train import trainer as trainer_module
from eagle.train.log import finite, whole_rows
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import losses, read_log


def arguments(config) -> list[str]:
    """The command line of these settings."""
    given = []
    for name, value in vars(config).items():
        if value is not None and value != []:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, bool) else value]
            given += [f"--{name.replace('_', '-')}", *map(str, values)]
    return given


def run(capsys, config) -> tuple[int, str]:
    """Exit status of `python -m eagle.train` and what it wrote to stderr."""
    status = command.main(arguments(config))
    return status, capsys.readouterr().err


@pytest.fixture
def nan_at_step_six(monkeypatch):
    real = Trainer.losses

    def losses(self, indices, batch):
        loss, sums = real(self, indices, batch)
        return (loss * math.nan, sums) if self.progress.step == 5 else (loss, sums)

    monkeypatch.setattr(Trainer, "losses", losses)


def test_a_nan_loss_stops_the_run_and_keeps_the_checkpoint(settings, tmp_path, capsys, monkeypatch, nan_at_step_six):
    config = settings(tmp_path, steps=9, save_every=2, keep=1, log_every=1)
    status, error = run(capsys, config)
    assert status == 2
    assert "stopped at step 6: the loss is nan" in error
    assert "learning rate 0.003; the checkpoint of step-00000004 is kept" in error
    assert "smaller --lr" in error
    (kept,) = checkpoint.directories(tmp_path / "checkpoints")
    head = checkpoint.load_file(kept / "head.safetensors")
    assert all(weight.isfinite().all() for weight in head.values() if weight.is_floating_point())
    assert not (tmp_path / "last").exists()
    for row in read_log(tmp_path):
        assert all(math.isfinite(value) for value in [row["loss"], *row["accepted"]])
    monkeypatch.undo()
    assert run(capsys, settings(tmp_path, steps=9, save_every=2, lr=1e-4))[0] == 0
    assert len(losses(tmp_path)) == 9
    assert (tmp_path / "last/model.safetensors").exists()


def test_a_log_holds_json_only(tmp_path):
    row = {"step": 3, "loss": math.nan, "accepted": [0.5, math.inf], "held_out": {"chain": -math.inf}}
    text = json.dumps(finite(row), allow_nan=False)
    assert json.loads(text) == {"step": 3, "loss": None, "accepted": [0.5, None], "held_out": {"chain": None}}
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": NaN')
    assert whole_rows(tmp_path / "log.jsonl") == [{"step": 1}]
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: not JSON"):
        whole_rows(tmp_path / "log.jsonl")


@pytest.mark.parametrize("killed_in", ["evaluate", "save_head", "plot"])
def test_a_run_killed_between_its_last_step_and_its_end(settings, tmp_path, monkeypatch, killed_in):
    """The last checkpoint is there, the last evaluation, `last/` or the curves are not."""
    config = settings(tmp_path / "killed", steps=6, save_every=3, eval_every=100)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, killed_in, dies)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config).run()
    monkeypatch.undo()
    assert checkpoint.directories(tmp_path / "killed/checkpoints")[-1].name == "step-00000006"
    Trainer(config).run()
    Trainer(settings(tmp_path / "whole", steps=6, save_every=3, eval_every=100)).run()
    for name in ("last/model.safetensors", "model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "killed/curves.png").exists()
    assert [row for row in read_log(tmp_path / "killed") if "held_out" in row] == [
        row for row in read_log(tmp_path / "whole") if "held_out" in row
    ]


def test_the_best_value_survives_a_final_evaluation_between_two_savings(settings, tmp_path, monkeypatch):
    """The last checkpoint was written before the last evaluation; a continued run must still see its value."""
    monkeypatch.setattr("eagle.train.evaluation.drafted_trees.TreeEvaluation.expected_accepted", lambda *_: 3.0)
    common = {"save_every": 3, "eval_every": 100, "eval_prompts": 1}
    Trainer(settings(tmp_path, steps=6, **common)).run()
    assert Trainer(settings(tmp_path, steps=9, **common)).progress.best == 3.0


def test_ctrl_c_says_what_is_kept(settings, tmp_path, capsys, monkeypatch):
    real = Trainer.step

    def step(self, rows, share):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        real(self, rows, share)

    monkeypatch.setattr(Trainer, "step", step)
    status, error = run(capsys, settings(tmp_path, steps=9, save_every=2))
    assert status == 130
    assert "step-00000004 is kept; the same command continues from it" in error
    status, error = run(capsys, settings(tmp_path / "other", steps=9, save_every=7))
    assert status == 130
    assert "no checkpoint was written yet" in error


@pytest.mark.parametrize("name", ["state.json", "head.safetensors", "optimizer.pt"])
def test_a_checkpoint_cut_short_is_named(settings, tmp_path, capsys, name):
    config = settings(tmp_path, steps=4, save_every=2)
    Trainer(config).run()
    path = tmp_path / "checkpoints/step-00000004" / name
    path.write_bytes(path.read_bytes()[:20])
    status, error = run(capsys, settings(tmp_path, steps=6, save_every=2))
    assert status == 2
    assert f"{path}: cannot be read" in error
    assert "continue from the checkpoint before it" in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def test_a_full_disk_names_the_file(settings, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    status, error = run(capsys, settings(tmp_path, steps=4, save_every=2))
    assert status == 2
    assert "head.safetensors: cannot be written ([Errno 28] No space left on device)" in error
    assert error.strip().splitlines()[-1].startswith(f"error: {tmp_path}")


def test_one_conversation_is_not_enough(settings, tiny_data, tmp_path, capsys):
    data = tmp_path / "one.jsonl"
    data.write_text(tiny_data.read_text().splitlines(keepends=True)[0])
    status, error = run(capsys, settings(tmp_path / "run", data=[str(data)]))
    assert status == 2
    assert "one conversation" in error
    assert "--held-out" in error
    assert run(capsys, settings(tmp_path / "run", data=[str(data)], held_out=[str(data)], steps=2))[0] == 0


def test_a_line_changed_between_kill_and_resume(settings, tiny_data, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    lines = tiny_data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    Trainer(settings(tmp_path / "run", steps=2, save_every=2, data=[str(data)])).run()
    data.write_text("".join([lines[0], lines[2], *lines[2:]]))
    status, error = run(capsys, settings(tmp_path / "run", steps=4, data=[str(data)]))
    assert status == 2
    assert "other data" in error


BAD = {
    "no target": (
        {"target": "none/such"},
        "target 'none/such' (no directory here, taken for a hub id) cannot be loaded",
    ),
    "no data": ({"data": ["none.jsonl"]}, "training data 'none.jsonl': no such file"),
    "no limit": ({"steps": None}, "give at least one of steps, epochs, minutes"),
    "taps": ({"taps": [1, 2, 9]}, "taps [9]: outside the target's layers 0 .. 5"),
    "vocabulary": ({"draft_vocab_size": 97}, "draft_vocab_size is 97; expected 1 .. 96"),
    "batch": ({"batch_tokens": 5}, "batch_tokens is 5"),
    "init": ({"init_from": "none/such"}, "none/such"),
    "too large": (
        {"intermediate_size": 10**20},
        "intermediate_size is 100000000000000000000; expected 1 .. 2147483647",
    ),
    "cache": ({"feature_cache": ""}, "feature_cache is ''"),
    "sharding": ({"shard_target": True}, "shard_target needs several processes"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_an_error_of_use_is_one_line(settings, tmp_path, capsys, monkeypatch, changes, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = settings(tmp_path / "run")
    for name, value in changes.items():
        setattr(config, name, value)
    status, error = run(capsys, config)
    line = error.strip().splitlines()[-1]
    assert status == 2
    assert line.startswith("error: ")
    assert words in line


def test_a_truncated_target_is_named(settings, tiny_target, tmp_path, capsys):
    broken = tmp_path / "target"
    broken.mkdir()
    for path in tiny_target.iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[:1000] if path.suffix == ".safetensors" else content)
    status, error = run(capsys, settings(tmp_path / "run", target=str(broken)))
    assert status == 2
    assert f"target '{broken}': {broken}/model.safetensors: cannot be read as tensors" in error.strip().splitlines()[-1]


def test_auto_caches_where_epochs_repeat(settings, tmp_path):
    online = settings(tmp_path / "online", epochs=2, steps=None, batch_tokens=400, warmup=20)
    Trainer(online).run()
    trainer = Trainer(
        settings(tmp_path / "auto", epochs=2, steps=None, batch_tokens=400, warmup=20, feature_cache="auto")
    )
    assert trainer.cache is not None
    trainer.run()
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "online"), abs=1e-4)
    assert not (tmp_path / "auto/features").exists()
    once = settings(tmp_path / "once", epochs=1, steps=None, feature_cache="auto")
    assert Trainer(once).cache is None


def test_two_runs_of_one_output(settings, tmp_path, capsys):
    """The second is refused before it reads a checkpoint or cuts the log."""
    with sole_writer(tmp_path / "run"):
        status, error = run(capsys, settings(tmp_path / "run", steps=2))
    assert status == 2
    assert f"{tmp_path / 'run'}: another process is writing it" in error
    assert not (tmp_path / "run").exists()


def test_a_target_replaced_under_its_path(settings, tiny_target, tmp_path, capsys):
    target = shutil.copytree(tiny_target, tmp_path / "target")
    Trainer(settings(tmp_path / "run", steps=2, save_every=2, target=str(target))).run()
    moved = target.rename(tmp_path / "moved")
    shutil.copytree(moved, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    status, error = run(capsys, settings(tmp_path / "run", steps=4, target=str(target)))
    assert status == 2
    assert "begun with other weights in" in error


def test_a_feature_cache_of_a_replaced_target(settings, tiny_target, tmp_path, capsys):
    target = shutil.copytree(tiny_target, tmp_path / "target")
    cached = {"feature_cache": str(tmp_path / "features"), "target": str(target), "steps": 2}
    assert run(capsys, settings(tmp_path / "one", **cached))[0] == 0
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    status, error = run(capsys, settings(tmp_path / "two", **cached))
    assert status == 2
    assert "belongs to another target" in error
