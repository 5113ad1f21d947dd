"""The number format where nobody names one: bfloat16 only where the hardware multiplies it."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from eagle.nn import precision
from eagle.nn.precision import has_bf16
from eagle.train import regenerate
from eagle.train.config import TrainConfig
from eagle.train.trainer import Trainer
from tests.eagle.train.conftest import losses

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(monkeypatch, features, expected):
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: features)
    assert has_bf16(CPU) == expected
    assert TrainConfig().for_device(CPU).precision == ("bfloat16" if expected else "float32")


def test_other_devices(monkeypatch):
    monkeypatch.delattr(precision.torch.cpu, "get_capabilities")  # an older torch
    assert not has_bf16(CPU)
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert has_bf16(GPU)
    assert not has_bf16(torch.device("meta"))


@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_what_is_named_stays(given):
    assert [TrainConfig(precision=given).for_device(device).precision for device in (GPU, CPU)] == [given, given]


def test_a_run_keeps_what_was_decided(settings, tmp_path, monkeypatch):
    """A checkpoint of a run in float32 is not continued in bfloat16 because the machine is another one."""
    monkeypatch.setattr("eagle.train.config.fastest", lambda device: "float32")
    Trainer(settings(tmp_path, precision="auto", steps=2, save_every=2)).run()
    state = json.loads((tmp_path / "checkpoints/step-00000002/state.json").read_text())
    assert state["config"]["precision"] == "float32"
    AcceleratorState._reset_state()  # one process, two formats
    with pytest.raises(ValueError, match="precision: was 'float32', is 'bfloat16'"):
        Trainer(settings(tmp_path, precision="bfloat16", steps=4, save_every=2))
    AcceleratorState._reset_state()


def test_bf16_trains(settings, tmp_path):
    AcceleratorState._reset_state()
    trainer = Trainer(settings(tmp_path / "half", precision="bfloat16", steps=8, acceptance_weight=0.5))
    assert trainer.head.fc.weight.dtype == torch.float32
    trainer.run()
    AcceleratorState._reset_state()
    Trainer(settings(tmp_path / "full", steps=8, acceptance_weight=0.5)).run()
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=0.02)
    assert losses(tmp_path / "half") != losses(tmp_path / "full")


def test_regenerate_decides_before_it_compares(monkeypatch, tiny_target, tiny_data, tmp_path):
    """`auto` and the name it stands for are the same run."""
    monkeypatch.setattr(regenerate, "fastest", lambda device: "float32")
    output = tmp_path / "o.jsonl"
    common = ["--target", tiny_target, "--data", tiny_data, "--output", output, "--minutes", "0"]
    for dtype in ([], ["--dtype", "float32"]):
        assert regenerate.main([str(argument) for argument in [*common, *dtype]]) == 0
    assert json.loads((tmp_path / "o.jsonl.settings.json").read_text())["dtype"] == "float32"
