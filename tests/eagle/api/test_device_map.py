"""Targets that accelerate spreads over devices or offloads: the head beside the last layers, the same tokens."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle.api.eagle_model import EagleModel
from eagle.engine.distributions import Sampling
from eagle.engine.graphs import graph_blocker
from tests.eagle.tiny import LAYERS, tiny_head, tiny_target

PARTS = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
PARTS += [f"model.layers.{layer}" for layer in range(LAYERS)]
PROMPT = torch.tensor([[3, 1, 4]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("target")
    tiny_target().save_pretrained(path)
    return path


def load(saved, device_map, folder):
    target = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map, offload_folder=str(folder))
    return EagleModel.from_head(target, tiny_head(tiny_target()))


@pytest.mark.parametrize("offloaded", [None, (), (0, 4), (LAYERS - 1,)], ids=["auto", "none", "two", "last"])
def test_the_same_tokens(saved, tmp_path, offloaded):
    """device_map "auto", one entry per part, and layers on disk, whose weights are not there between calls."""
    places = "auto" if offloaded is None else dict.fromkeys(PARTS, "cpu")
    for layer in offloaded or ():
        places[f"model.layers.{layer}"] = "disk"
    model = load(saved, places, tmp_path)
    assert any(w.is_meta for w in model.target.model.parameters()) == bool(offloaded)
    assert ("offloaded" in (graph_blocker(model.target, model.drafter, Sampling()) or "")) == bool(offloaded)
    plain = EagleModel.from_head(tiny_target(), tiny_head(tiny_target()))
    for temperature in (0.0, 1.0):
        answers = [
            m.generate(PROMPT, 12, temperature=temperature, generator=torch.Generator().manual_seed(0))
            for m in (model, plain)
        ]
        assert torch.equal(*answers)


def test_the_head_lies_beside_the_last_layer(saved):
    """With a second kind of device that every machine has: one without memory."""
    target = AutoModelForCausalLM.from_pretrained(saved)
    for layer in target.model.layers[LAYERS // 2 :]:
        layer._hf_hook = SimpleNamespace(execution_device="meta")
    head = tiny_head(target)
    model = EagleModel.from_head(target, head)
    assert all(weight.is_meta for weight in head.parameters())
    assert head._bound[0].weight.is_meta
    assert model.device.type == "cpu"  # where tokens go in
    assert [device.type for device in model.target.layer_devices] == ["cpu"] * (LAYERS // 2) + ["meta"] * (LAYERS // 2)


def test_offloaded_embeddings_are_refused(saved, tmp_path):
    places = {part: "disk" if part == "model.embed_tokens" else "cpu" for part in PARTS}
    with pytest.raises(ValueError, match="embed_tokens are offloaded"):
        load(saved, places, tmp_path)
