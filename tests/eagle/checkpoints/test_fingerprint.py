"""Equal weights, equal fingerprints; other weights, shapes or configurations, others."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eagle.checkpoints.fingerprint import fingerprint

DEMO = Path(__file__).parents[3] / "checkpoints" / "demo"


def save(folder, **tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"a": 1}')
    save_file(tensors, folder / "model.safetensors")
    return fingerprint(folder)


def test_the_place_does_not_matter(tmp_path):
    shutil.copytree(DEMO / "eagle3", tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(DEMO / "eagle3") != fingerprint(DEMO / "target")


def test_every_tensor_counts(tmp_path):
    tensors = {f"layer{i}": torch.arange(5000.0) + i for i in range(6)}
    before = save(tmp_path / "a", **tensors)
    assert save(tmp_path / "b", **tensors) == before
    for name, value in tensors.items():
        assert save(tmp_path / "c", **{**tensors, name: value * 1.001}) != before, name
        changed = value.clone()
        changed[-1] += 1
        assert save(tmp_path / "c", **{**tensors, name: changed}) != before, name


def test_shapes_and_configuration_count(tmp_path):
    before = save(tmp_path / "a", x=torch.zeros(4, 6))
    assert save(tmp_path / "a", x=torch.zeros(6, 4)) != before
    assert save(tmp_path / "a", x=torch.zeros(4, 6)) == before
    (tmp_path / "a" / "config.json").write_text('{"a": 2}')
    assert fingerprint(tmp_path / "a") != before


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]xyz"]
)
def test_damaged_files_have_one_too(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert len(fingerprint(tmp_path)) == 32


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_weights_are_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a directory with weights"):
        fingerprint(tmp_path / name)
