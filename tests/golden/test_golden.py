"""The engine emits the recorded tokens, and the verifiers decide the recorded trees as before (see record.py)."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hsd
from tests.golden.record import HERE, METHODS, PROMPTS, load, tokens

RECORDED = json.loads((HERE / "tokens.json").read_text())
TREES = load_file(HERE / "trees.safetensors")


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    yield load()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_the_tokens_are_the_recorded_ones(model, method, temperature):
    recorded = RECORDED[f"{method} T={temperature:g}"]
    assert [tokens(model, method, temperature, question) for question in PROMPTS] == recorded


@pytest.mark.parametrize("key", sorted(key for key in TREES if key.endswith(".stop")))
def test_the_stopping_distributions_are_the_recorded_ones(key):
    name, verifier, _ = key.split(".")
    field = lambda part: TREES.get(f"{name}.{part}")
    tree = hsd.DraftTree(
        field("tokens"), field("parents"), field("proposal_rows"), field("proposals"), field("support")
    )
    law = hsd.stopping_law(tree, field("target_probs"), verifier)
    assert torch.allclose(law.stop, TREES[key], atol=1e-5, rtol=0)
    assert abs(law.expected_accepted.item() - TREES[f"{name}.{verifier}.expected"].item()) < 1e-5
