"""Targets with PEFT adapters, and quantised ones: a tree's tokens are those of plain decoding of the same model.

PEFT and torchao are optional: skipped where they are not installed.
"""

import copy

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from tests.eagle.tiny import tiny_head, tiny_target

# PEFT and torchao call what transformers and torch are about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PROMPT, TOKENS = torch.tensor([[5, 17, 3, 42]]), 12


def plain(target) -> torch.Tensor:
    return EagleModel(target).generate(PROMPT, TOKENS, temperature=0.0, tree="none", eos_token_id=[])


def with_trees(target) -> torch.Tensor:
    """The head is made for the target's shape; what it accepts does not matter here."""
    model = EagleModel.from_head(target, tiny_head(target).float())
    return model.generate(PROMPT, TOKENS, temperature=0.0, tree="topk", nodes=8, depth=3, eos_token_id=[])


def stock(target) -> torch.Tensor:
    """`generate` of transformers."""
    return target.generate(PROMPT, max_new_tokens=TOKENS, do_sample=False, attention_mask=torch.ones_like(PROMPT))


def adapted(target):
    """The causal LM inside a PEFT model, its adapter active, far from zero."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(target, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.4)
    return model


def test_an_active_adapter_counts():
    target = tiny_target()
    before = plain(copy.deepcopy(target))
    model = adapted(target)
    inside = model.get_base_model()
    expected = stock(inside)
    assert not torch.equal(expected, before)
    assert torch.equal(plain(inside), expected)
    assert torch.equal(with_trees(inside), expected)
    with model.disable_adapter():
        assert torch.equal(plain(inside), before)


def test_a_merged_adapter_is_the_active_one():
    model = adapted(tiny_target())
    active = with_trees(model.get_base_model())
    merged = model.merge_and_unload()
    assert EagleModel(merged).target.decoder_because is None
    assert torch.equal(with_trees(merged), active)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weight_only_quantisation(kind, family):
    """torchao; the head stays in the model's dtype."""
    quantization = pytest.importorskip("torchao.quantization")
    target = tiny_target(family, hidden_size=64, intermediate_size=128)
    before = plain(copy.deepcopy(target))
    config = {"int8": quantization.Int8WeightOnlyConfig, "int4": quantization.IntxWeightOnlyConfig}[kind]
    options = {"weight_dtype": torch.int4} if kind == "int4" else {}
    quantization.quantize_(target, config(**options))
    assert type(target.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    expected = plain(target)
    assert torch.equal(stock(target), expected)
    assert torch.equal(with_trees(target), expected)
    assert expected.shape == before.shape
