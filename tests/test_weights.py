"""Loading and saving heads: round trips, and what a bad checkpoint says."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from eagle.head import Eagle3Head, HeadConfig
from eagle.weights import load_head, save_head

LAYERS, VOCABULARY, DRAFT, WIDTH = 8, 40, 24, 32
TARGET = LlamaConfig(hidden_size=WIDTH, vocab_size=VOCABULARY, num_hidden_layers=LAYERS, num_attention_heads=4)
SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": VOCABULARY, "draft_vocab_size": DRAFT, "taps": (2, 4, 5), "target_hidden_size": WIDTH,
}


def random_head(**changes) -> Eagle3Head:
    torch.manual_seed(0)
    head = Eagle3Head(HeadConfig(**{**SHAPE, **changes}))
    if head.config.has_vocabulary_map:
        kept = torch.randperm(VOCABULARY)[:DRAFT].sort().values
        head.d2t.copy_(kept - torch.arange(DRAFT))
        head.t2d[kept] = True
    return head


@pytest.fixture
def saved(tmp_path):
    save_head(random_head(), tmp_path, LAYERS)
    return tmp_path


def edit(directory, tensors=None, config=None):
    """Rewrite parts of a saved head; None removes an entry."""
    for path, changes, read, write in (
        (directory / "model.safetensors", tensors, load_file, save_file),
        (directory / "config.json", config, lambda p: json.loads(p.read_text()), lambda v, p: p.write_text(json.dumps(v))),
    ):
        merged = {**read(path), **(changes or {})}
        write({key: value for key, value in merged.items() if changes is None or changes.get(key, 0) is not None}, path)


@pytest.mark.parametrize("changes", [
    {}, {"draft_vocab_size": VOCABULARY}, {"fc_norm": True, "norm_output": True}, {"taps": (1, 3, 6)},
    {"norm_before_fc": True, "norm_before_residual": True}, {"own_embeddings": True}, {"head_dim": 16},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
    {"hidden_size": 16, "own_embeddings": True, "head_dim": 4},
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded(tmp_path, changes, dtype):
    head = random_head(**changes).to(dtype)
    save_head(head, tmp_path, LAYERS)
    loaded = load_head(tmp_path, TARGET)
    default = {"rope_type": "default", "rope_theta": 10000.0}
    assert loaded.config == HeadConfig(**{**SHAPE, "rope_parameters": default, **changes})
    assert loaded.state_dict().keys() == head.state_dict().keys()
    for name, tensor in head.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.rotary.inv_freq, head.rotary.inv_freq)
    assert loaded.rotary.inv_freq.dtype == torch.float32


def test_dtype_is_converted_on_request(saved):
    head = load_head(saved, TARGET, dtype=torch.bfloat16, device="cpu")
    assert head.fc.weight.dtype == head.norm.weight.dtype == torch.bfloat16
    assert head.d2t.dtype == torch.int64
    assert head.t2d.dtype == torch.bool
