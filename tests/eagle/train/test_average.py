"""The mean of heads' weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle.train.average import average, main


def head(path, **tensors):
    path.mkdir()
    save_file({"fc.weight": torch.ones(2, 3), "d2t": torch.tensor([0, 1]), **tensors}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"of": path.name}))
    return str(path)


def test_weights_are_averaged_and_the_vocabulary_kept(tmp_path):
    a = head(tmp_path / "a", **{"fc.weight": torch.zeros(2, 3, dtype=torch.bfloat16)})
    b = head(tmp_path / "b", **{"fc.weight": torch.full((2, 3), 3.0, dtype=torch.bfloat16)})
    assert main([a, b, "--output", str(tmp_path / "c")]) == 0
    found = load_file(tmp_path / "c" / "model.safetensors")
    assert found["fc.weight"].dtype == torch.bfloat16
    assert found["fc.weight"].unique().tolist() == [1.5]
    assert found["d2t"].tolist() == [0, 1]
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == {"of": "a"}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"fc.weight": torch.ones(3, 3)}, "fc.weight: shapes"),
        ({"d2t": torch.tensor([0, 2])}, "d2t: the heads have other draft vocabularies"),
        ({"norm.weight": torch.ones(3)}, "tensors have other names"),
    ],
)
def test_heads_that_do_not_fit(tmp_path, tensors, words):
    heads = [head(tmp_path / "a"), head(tmp_path / "b", **tensors)]
    with pytest.raises(ValueError, match=words):
        average(heads, str(tmp_path / "c"))
    with pytest.raises(ValueError, match="missing"):
        average([heads[0], str(tmp_path / "none")], str(tmp_path / "c"))
