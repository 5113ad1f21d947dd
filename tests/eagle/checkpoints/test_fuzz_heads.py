"""Mutated head folders: a head that loads decodes as plain decoding does, or a ValueError of one sentence names it.

One to three mutations of a good folder: a config key removed or given an odd value, a tensor renamed, reshaped, cast or
filled, bytes of a file cut or overwritten.
"""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eagle.api.eagle_model import EagleModel
from eagle.checkpoints.load import load_head, save_head
from tests.eagle.tiny import tiny_head, tiny_target

ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 2**40, 0.5, 1e-6, 1e30, 1e300, float("nan"), float("inf"), "", "8"]
    + [[], {}, [1, 2, 3], [0, 0, 0], [2, 4, 9], ["a"], {"rope_type": "linear", "factor": 0}, {"rope_type": "yarn"}]
    + [
        {"rope_type": "dynamic", "factor": 2.0},
        {"eagle_aux_hidden_state_layer_ids": [1, 2]},
        ["Eagle3LlamaForCausalLM"],
        ["Qwen3Eagle3Model"],
        ["Eagle3Qwen3ForCausalLM"],
        ["sliding_attention"],
        ["full_attention"],
        [1, 3, 4],
    ]
)
EXTRA_KEYS = ["attention_bias", "eagle_config", "eagle_aux_hidden_state_layer_ids", "fc_norm", "norm_output"]
EXTRA_KEYS += ["sliding_window", "layer_types", "use_sliding_window", "max_window_layers", "num_target_layers"]
EXTRA_KEYS += ["target_layer_ids", "mlp_bias", "qkv_bias", "num_aux_hidden_states", "num_hidden_layers"]
EXTRA_KEYS += ["norm_before_residual", "rope_parameters", "target_hidden_size", "transformer_layer_config", "surprise"]
FILLS = {
    "zero": lambda t: torch.zeros_like(t),
    "huge": lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else torch.full_like(t, 100),
    "NaN": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else ~t if t.dtype == torch.bool else -t,
    "transposed": lambda t: t.mT.contiguous() if t.ndim == 2 else t[:-1].clone(),
    "longer": lambda t: torch.cat([t, t]),
    "scalar": lambda t: t.flatten()[0].clone(),
    "half": lambda t: t.half(),
    "int8": lambda t: t.to(torch.int8),
    "float": lambda t: t.float(),
    "missing": lambda t: None,
}
MUTATION = st.one_of(
    st.tuples(st.just("config"), st.integers(0, 99), ODD),
    st.tuples(st.just("tensor"), st.integers(0, 99), st.sampled_from([*FILLS])),
    st.tuples(st.just("cut"), st.sampled_from(["config.json", "model.safetensors"]), st.floats(0, 1)),
    st.tuples(st.just("bytes"), st.sampled_from(["config.json", "model.safetensors"]), st.integers(0, 2**20)),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A target, its head's folder, a prompt and plain decoding's tokens."""
    target = tiny_target()
    folder = tmp_path_factory.mktemp("good")
    save_head(tiny_head(target, draft_vocab=40), folder, target.config.num_hidden_layers)
    prompt = torch.tensor([[5, 17, 3, 42]])
    plain = EagleModel(target).generate(prompt, 8, temperature=0.0, tree="none", eos_token_id=[])
    return target, folder, prompt, plain


def mutate(folder, mutation) -> None:
    """Apply one mutation; one that cannot be applied (an earlier one broke the file) changes nothing."""
    kind, place, how = mutation
    if kind in ("cut", "bytes"):
        path = folder / place
        data = bytearray(path.read_bytes())
        if kind == "cut":
            del data[int(len(data) * how) :]
        elif data:
            data[how % len(data)] ^= 1 + how % 255
        path.write_bytes(data)
        return
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except Exception:
        return
    if kind == "config" and isinstance(config, dict):
        keys = sorted(config) + EXTRA_KEYS
        config[keys[place % len(keys)]] = how
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "tensor" and tensors:
        name = sorted(tensors)[place % len(tensors)]
        changed = FILLS[how](tensors.pop(name))
        save_file({**tensors, **({} if changed is None else {name: changed})}, folder / "model.safetensors")


def load(place, config, dtype):
    """The head and no message, or none and the ValueError's message; another exception fails the test."""
    try:
        return load_head(place, config, dtype=dtype), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.filterwarnings(
    "ignore:config.json states rope_theta", "ignore:.*not finite", "ignore:tensor d2t", "ignore:the head"
)
def test_a_mutated_head_is_exact_or_refused(good, tmp_path_factory):
    target, folder, prompt, plain = good
    counts = {"loaded": 0, "refused": 0}

    @settings(
        max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(st.lists(MUTATION, min_size=1, max_size=3), st.sampled_from([torch.float32, torch.float16]))
    def try_one(mutations, dtype):
        place = tmp_path_factory.mktemp("head")
        try:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            for mutation in mutations:
                mutate(place, mutation)
            head, message = load(place, target.config, dtype)
            if head is None:
                assert message.startswith(f"draft head '{place}': ")
                assert "\n" not in message
                assert "weights_only" not in message
                counts["refused"] += 1
                return
            model = EagleModel.from_head(target, head.float())
            out = model.generate(prompt, 8, temperature=0.0, tree="topk", nodes=8, depth=3, eos_token_id=[])
            assert torch.equal(out, plain)
            sampled = model.generate(
                prompt, 4, temperature=1.0, nodes=8, depth=3, seed=0, eos_token_id=[], return_dict_in_generate=True
            )
            for step in sampled.rows[0].steps:
                assert 0 <= step.expected_accepted <= 3
            counts["loaded"] += 1
        finally:
            shutil.rmtree(place)

    try_one()
    print(counts)
    assert min(counts.values()) > 15, counts
