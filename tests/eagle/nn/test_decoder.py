"""The decoder of our own equals the stock model wherever it runs, and does not run where it would not."""

import copy
import re

import pytest
import torch
from torch import nn

from eagle.nn import native
from eagle.nn.decoder import FAMILIES as OURS
from eagle.nn.target import CachedLM
from tests.eagle.nn.test_target import DEPTHS, TAPS, TREE, ancestors
from tests.eagle.tiny import FAMILIES, VOCAB, tiny_target, with_prompts

GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 2.0}
ROPES = {
    "llama3": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}  # fmt: skip
TARGETS = {
    **{family: (family, {}) for family in sorted(OURS)},
    "granite, as published": ("granite", GRANITE),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "odd sizes": ("llama", {"hidden_size": 36, "intermediate_size": 70, "head_dim": 10}),
    "heads of 128": ("qwen3", {"head_dim": 128}),
    **{f"{name} rope": ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()},
}


def target(name: str, dtype: torch.dtype = torch.float32):
    family, changes = TARGETS[name]
    model = tiny_target(family, spread=0.1, **changes)
    torch.manual_seed(3)
    for name_, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.data.normal_(1.0 if "norm" in name_ else 0.0, 0.2)
    return model.to(dtype)


@torch.inference_mode()
def scores(lm: CachedLM) -> list[torch.Tensor]:
    """Logits and auxiliary states of two prompts, a tree, and a few more tokens."""
    lm.refresh()  # as a session does when it begins
    lm.cache.reserve(2, len(TREE) + 2, 60, 8)
    found = []
    for row, prompt in enumerate([[3, 1, 4, 1, 9, 2], [8, 7, 5]]):
        found += lm.read_prompt(row, prompt)
    lm.cache.use(2)
    seen = torch.nn.functional.pad(ancestors(), (0, 2)).expand(2, -1, -1)
    found += lm.score(torch.tensor([TREE] * 2), torch.tensor([DEPTHS] * 2), seen)
    lm.commit(torch.tensor([[0, 2], [0, 0]]), torch.tensor([2, 1]))
    lm.cache.set_held([8, 4])
    more = lm.extend(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    return [*found, more.logits, more.aux_states[0], more.aux_states[1, :2]]


def without_native(lm: CachedLM) -> CachedLM:
    lm.decoder.native = None
    return lm


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("how", ["native", "torch"])
def test_it_equals_the_stock_model(name, how):
    lm = CachedLM(target(name), TAPS)
    assert lm.decoder_because is None
    if how == "torch":
        without_native(lm)
    elif lm.decoder.native is None:
        pytest.skip(f"no native code: {native.unavailable()}")
    for found, expected in zip(scores(lm), scores(CachedLM(target(name), TAPS, decoder="stock")), strict=True):
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "granite, as published"])
@pytest.mark.parametrize("instructions", native.INSTRUCTIONS)
def test_in_bfloat16_it_is_as_near_to_float32_as_the_stock_model(name, instructions, monkeypatch):
    reason = native.unavailable()
    if reason or native.INSTRUCTIONS[instructions] > native.best():
        pytest.skip(reason or f"this CPU has no {instructions}")
    library = native.load()._replace(instructions=native.INSTRUCTIONS[instructions])
    monkeypatch.setattr(native, "load", lambda: library)
    exact = scores(CachedLM(target(name, torch.bfloat16).float(), TAPS, decoder="stock"))
    stock, ours = (scores(CachedLM(target(name, torch.bfloat16), TAPS, decoder=which)) for which in ("stock", "auto"))

    def error(found):
        return sum((a.float() - b).square().mean().sqrt().item() for a, b in zip(found, exact, strict=True))

    assert error(ours) < 1.1 * error(stock)


def hooked(model, name: str) -> None:
    model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: output)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(model) -> None:
    head = Doubled(model.config.hidden_size, VOCAB, bias=False)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)


def patched(model) -> None:
    layer = model.model.layers[1].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 0.5


CHANGES = {
    "a hook on the model": (lambda model: hooked(model, ""), "the model has a hook"),
    "a hook on a layer": (lambda model: hooked(model, "model.layers.3"), "model.layers.3 has a hook"),
    "a hook on lm_head": (lambda model: hooked(model, "lm_head"), "lm_head has a hook"),
    "another kind of lm_head": (doubled, "lm_head is a .*Doubled"),
    "a patched forward": (patched, "the forward of model.layers.1.mlp was replaced"),
    "another activation": (lambda model: setattr(model.config, "hidden_act", "gelu"), "hidden_act='gelu'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_transformers_made_it_runs_there(change):
    """Even when it was changed between two generations."""
    make, reason = CHANGES[change]
    lm = CachedLM(target("llama"), TAPS)
    scores(lm)
    make(lm.model)
    found = scores(lm)
    assert lm.decoder is None and re.search(reason, lm.decoder_because)
    with torch.no_grad():
        prompt = lm.model(torch.tensor([[3, 1, 4, 1, 9, 2]])).logits[0, -1]
    assert torch.allclose(found[0][0, 0], prompt, atol=1e-5)


def test_other_architectures_run_there_too():
    assert "mixtral" in CachedLM(tiny_target("mixtral")).decoder_because
    assert CachedLM(tiny_target(), decoder="stock").decoder_because == "decoder='stock'"
    with pytest.raises(ValueError, match="decoder='fast'.*'auto' or 'stock'"):
        CachedLM(tiny_target(), decoder="fast")


WRITES = {
    "in place": lambda weight: weight.mul_(1.5),
    "through .data": lambda weight: weight.data.mul_(1.5),
    "another storage": lambda weight: setattr(weight, "data", weight.data * 1.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "place", ["model.layers.4.self_attn.k_proj", "model.layers.0.mlp.up_proj", "model.norm", "lm_head"]
)
@pytest.mark.parametrize("how", ["native", "torch"])
def test_written_weights_are_seen_by_the_next_generation(write, place, how, monkeypatch):
    if how == "torch":
        monkeypatch.setattr("eagle.nn.native.calls.usable", lambda *_tensors: False)
        monkeypatch.setattr("eagle.nn.decoder.usable", lambda *_tensors: False)
    lm = CachedLM(target("llama", torch.bfloat16), TAPS)
    before = scores(lm)
    WRITES[write](lm.model.get_submodule(place).weight)
    after, fresh = scores(lm), scores(CachedLM(copy.deepcopy(lm.model), TAPS))
    assert lm.decoder is not None
    assert all(torch.equal(a, b) for a, b in zip(after, fresh, strict=True))
    assert not torch.equal(before[-3], after[-3])


def test_the_users_model_stays_as_it_was(tmp_path):
    model = target("llama", torch.bfloat16)
    names, modules = list(model.state_dict()), [vars(module).keys() for module in model.modules()]
    before, tokens = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        logits = model(tokens).logits
        scores(CachedLM(model, TAPS))
        assert torch.equal(model(tokens).logits, logits)
    assert [vars(module).keys() for module in model.modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert list(again.state_dict()) == names and torch.equal(again.lm_head.weight, model.lm_head.weight)
    copied = copy.deepcopy(model).double()
    assert copied.lm_head.weight.dtype == torch.float64 and model.lm_head.weight.dtype == torch.bfloat16


def long_rope(kind: str) -> dict:
    if kind == "dynamic":
        return {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 24,
        "factor": 4.0,
        **factors,
    }


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_draft_past_the_original_context_does_not_turn_the_nodes_before_it(kind):
    """The stock model turns every position of a forward by the longest: a tree that reaches over the limit would not be
    scored as its paths are, so the stock model is refused and the context ends at the limit.
    """
    limit = {"dynamic": 16, "longrope": 24}[kind]
    model = tiny_target(rope_parameters=long_rope(kind), max_position_embeddings=limit if kind == "dynamic" else 128)
    lm = CachedLM(model, TAPS)
    assert lm.context_length == limit
    prompt = torch.arange(limit - 2)[None]
    with torch.inference_mode():
        with_prompts(lm, prompt.tolist(), len(TREE), limit + 8)
        found = lm.score(torch.tensor([TREE]), torch.tensor([DEPTHS]), ancestors()).logits[0, 1]
        expected = model(torch.cat([prompt, torch.tensor([[TREE[0], TREE[1]]])], 1)).logits[0, -1]
    assert max(DEPTHS) + limit - 2 >= limit and torch.allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match=f"'{kind}'.*decoder='stock'"):
        CachedLM(model, TAPS, decoder="stock")


def test_attention_that_ignores_masks_is_refused():
    model = tiny_target()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*set_attn_implementation"):
        CachedLM(model)


def test_every_family_of_the_tests_is_ours_or_says_why():
    for family in FAMILIES:
        lm = CachedLM(tiny_target(family))
        assert (lm.decoder is not None) == (family in OURS), lm.decoder_because
