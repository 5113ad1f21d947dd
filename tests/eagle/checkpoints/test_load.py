"""Loading and saving heads: round trips, and what a bad checkpoint says."""

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import eagle
from eagle.api.loading import LoadOptions, load_lm
from eagle.checkpoints.checks import check_embeddings
from eagle.checkpoints.load import load_head, save_head
from eagle.files import read_json
from eagle.nn.head import Eagle3Head, HeadConfig

LAYERS, VOCABULARY, DRAFT, WIDTH = 8, 40, 24, 32
TARGET = LlamaConfig(hidden_size=WIDTH, vocab_size=VOCABULARY, num_hidden_layers=LAYERS, num_attention_heads=4)
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "draft_vocab_size": DRAFT,
    "taps": (2, 4, 5),
    "target_hidden_size": WIDTH,
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
        (directory / "config.json", config, read_json, lambda value, path: path.write_text(json.dumps(value))),
    ):
        merged = {**read(path), **(changes or {})}
        write({key: value for key, value in merged.items() if changes is None or changes.get(key, 0) is not None}, path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draft_vocab_size": VOCABULARY},
        {"fc_norm": True, "norm_output": True},
        {"taps": (1, 3, 6)},
        {"norm_before_fc": True, "norm_before_residual": True},
        {"own_embeddings": True},
        {"head_dim": 16},
        {"taps": (1, 2, 3, 5, 7)},
        {"qk_norm": True},
        {"qkv_bias": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"num_hidden_layers": 3, "sliding_windows": (None, 5, None)},
        {"num_hidden_layers": 2, "embeds_in_every_layer": True, "sliding_windows": (5, 5)},
        {"own_lm_head": False, "draft_vocab_size": VOCABULARY},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        {"hidden_size": 16, "own_embeddings": True, "head_dim": 4},
    ],
)
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


# --- the four families ---------------------------------------------------------------------------------------------

FLAT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "draft_vocab_size": DRAFT,
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
FAMILIES = {
    "safeailab": {**FLAT, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "pad_token_id": 0},
    "specforge": {
        **FLAT,
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "rope_theta": 500000.0,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 6], "use_aux_hidden_state": True},
    },
    "angelslim": {
        **FLAT,
        "architectures": ["Eagle3LlamaForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 8,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "speculators": {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": DRAFT,
        "norm_before_residual": True,
        "norm_before_fc": False,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [1, 4, 7],
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x"}},
        "transformer_layer_config": {
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": VOCABULARY,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    },
}
FOUND = {  # taps as layer inputs, rope theta
    "safeailab": ((2, 4, 5), 10000.0),
    "specforge": ((2, 4, 7), 500000.0),
    "angelslim": ((2, 4, 5), 10000.0),
    "speculators": ((1, 4, 7), 500000.0),
}


def write_family(directory, family: str, pickle: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint with the file, tensor and config names of one public family."""
    nested = family == "speculators"
    head = random_head(own_embeddings=nested)
    tensors = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    if nested:
        tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    if pickle:
        torch.save(tensors, directory / "pytorch_model.bin")
    else:
        save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(FAMILIES[family]))
    return tensors


@pytest.mark.parametrize("pickle", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:config.json states rope_theta")
def test_every_family_loads(tmp_path, family, pickle):
    tensors = write_family(tmp_path, family, pickle)
    head = load_head(tmp_path, TARGET)
    taps, theta = FOUND[family]
    assert head.config.taps == taps
    assert head.config.rope_parameters["rope_theta"] == theta
    assert head.config.rms_norm_eps == 1e-5
    assert head.config.own_embeddings == head.config.norm_before_residual == (family == "speculators")
    for name, tensor in tensors.items():
        assert torch.equal(head.state_dict()[name.replace("layers.0.", "midlayer.")], tensor), name


def test_angelslim_theta_is_replaced_with_a_warning_and_can_be_kept(tmp_path):
    write_family(tmp_path, "angelslim")
    with pytest.warns(UserWarning, match="rope_theta"):
        assert load_head(tmp_path, TARGET).config.rope_parameters["rope_theta"] == 10000.0
    with pytest.warns(UserWarning, match="rope_theta"):
        assert load_head(tmp_path, TARGET, rope_theta=1e6).config.rope_parameters["rope_theta"] == 1e6


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    """`eagle.load_head` is the public name; only what a head consists of is fetched."""
    write_family(tmp_path, "safeailab", pickle=True)
    asked = []
    monkeypatch.setattr(
        "eagle.checkpoints.load.snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path),
    )
    assert eagle.load_head("yuhuili/EAGLE3-Tiny", TARGET).config.taps == (2, 4, 5)
    assert asked == [("yuhuili/EAGLE3-Tiny", ["*.json", "*.safetensors", "*.bin"])]


@pytest.mark.parametrize("t2d_dtype", [torch.bool, torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("d2t_dtype", [torch.int32, torch.int64], ids=str)
def test_maps_of_any_integer_type(saved, t2d_dtype, d2t_dtype):
    expected = load_head(saved, TARGET)
    edit(saved, tensors={"t2d": expected.t2d.to(t2d_dtype), "d2t": expected.d2t.to(d2t_dtype)})
    head = load_head(saved, TARGET)
    assert (head.t2d.dtype, head.d2t.dtype) == (torch.bool, torch.int64)
    assert torch.equal(head.support(), expected.support())
    edit(saved, tensors={"t2d": torch.ones(VOCABULARY, dtype=t2d_dtype)})
    with pytest.raises(ValueError, match="t2d: sum is 40; expected draft_vocab_size = 24"):
        load_head(saved, TARGET)


def test_the_verifiers_tensors_are_not_the_heads(tmp_path):
    """Speculators checkpoints carry embed_tokens, which counts, and sometimes copies of the verifier's own."""
    tensors = write_family(tmp_path, "speculators")
    copies = {"verifier_lm_head.weight": torch.ones(DRAFT, WIDTH), "verifier_norm.weight": torch.ones(WIDTH)}
    edit(tmp_path, tensors=copies)
    head = load_head(tmp_path, TARGET)
    assert not [name for name in head.state_dict() if "verifier" in name]
    head.bind_embeddings(torch.nn.Embedding(VOCABULARY, WIDTH))
    assert torch.equal(head.embed(torch.tensor([7]))[0], tensors["embed_tokens.weight"][7])
    assert torch.equal(head.lm_head.weight, tensors["lm_head.weight"])
    edit(tmp_path, tensors={"lm_head.weight": None})
    with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\]"):
        load_head(tmp_path, TARGET)


@pytest.mark.parametrize("tied", [False, True], ids=["parameters", "one storage"])
def test_a_pickle_of_parameters(saved, tied):
    tensors = load_file(saved / "model.safetensors")
    gate, up = "midlayer.mlp.gate_proj.weight", "midlayer.mlp.up_proj.weight"
    both = torch.nn.Parameter(torch.stack([tensors[gate], tensors[up]]))
    if tied:
        tensors[gate], tensors[up] = both.unbind()
    else:
        tensors[gate], tensors[up] = map(torch.nn.Parameter, (tensors[gate], tensors[up]))
    expected = load_head(saved, TARGET).state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    found = load_head(saved, TARGET).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("place", ["eagle_config", "transformer_layer_config"])
def test_flags_count_where_they_are_nested(tmp_path, place):
    family = {"eagle_config": "specforge", "transformer_layer_config": "speculators"}[place]
    write_family(tmp_path, family)
    edit(tmp_path, config={place: {**FAMILIES[family][place], "norm_output": True}})
    assert load_head(tmp_path, TARGET).config.norm_output


def test_taps_written_as_inputs_in_eagle_config_are_recognised(tmp_path):
    write_family(tmp_path, "specforge")
    edit(tmp_path, config={"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}})
    assert load_head(tmp_path, TARGET).config.taps == (2, 4, 5)
    assert load_head(tmp_path, TARGET, taps=(1, 2, 3)).config.taps == (1, 2, 3)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_rope_in_old_and_new_spelling(saved, spelling):
    edit(saved, config={"rope_theta": None, "rope_scaling": None, **spelling})
    expected = 1 / 5e5 ** (torch.arange(0, 8, 2) / 8) / 2.0
    torch.testing.assert_close(load_head(saved, TARGET).rotary.inv_freq, expected)


def test_heads_whose_number_does_not_divide_the_width(tmp_path):
    save_head(random_head(num_attention_heads=3, num_key_value_heads=1), tmp_path, LAYERS)
    assert load_head(tmp_path, TARGET).rotary.inv_freq.shape == (4,)


def test_head_dim_that_the_config_leaves_out_is_read_off_the_weights(tmp_path):
    save_head(random_head(head_dim=16), tmp_path, LAYERS)
    edit(tmp_path, config={"head_dim": None})
    assert load_head(tmp_path, TARGET).config.head_dim == 16


def test_equal_vocabularies_tolerate_an_identity_map_only(tmp_path):
    save_head(random_head(draft_vocab_size=VOCABULARY), tmp_path, LAYERS)
    identity = {"d2t": torch.zeros(VOCABULARY, dtype=torch.int64), "t2d": torch.ones(VOCABULARY, dtype=torch.bool)}
    edit(tmp_path, tensors=identity)
    assert load_head(tmp_path, TARGET).support() is None
    edit(tmp_path, tensors={"d2t": torch.ones(VOCABULARY, dtype=torch.int64)})
    with pytest.raises(ValueError, match="d2t"):
        load_head(tmp_path, TARGET)


# --- traps that other loaders fell into -----------------------------------------------------------------------------


def test_a_d2t_of_target_ids_is_recognised_by_t2d(saved):
    """llama.cpp's convention; converted, it becomes offsets."""
    expected = load_head(saved, TARGET)
    edit(saved, tensors={"d2t": expected.support()})
    with pytest.warns(UserWarning, match="d2t holds target ids"):
        found = load_head(saved, TARGET)
    assert torch.equal(found.support(), expected.support())
    assert torch.equal(found.d2t, expected.d2t)


def test_a_shorter_context_than_the_target_s_is_said_and_goes_on(tmp_path):
    save_head(random_head(), tmp_path, LAYERS)
    longer = LlamaConfig(**{**TARGET.to_dict(), "max_position_embeddings": 8192})
    with pytest.warns(UserWarning, match="max_position_embeddings 2048, the target's 8192; its rotary positions go on"):
        head = load_head(tmp_path, longer)
    cos, _ = head.rotary(head.fc.weight, torch.tensor([[2047, 2048, 8000]]))
    angles = torch.tensor([2047.0, 2048.0, 8000.0])[:, None] * head.rotary.inv_freq
    torch.testing.assert_close(cos[0, :, :4], angles.cos())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_flag_counts_only_without_an_lm_head(tmp_path, tied):
    head = random_head(draft_vocab_size=VOCABULARY, own_embeddings=True)
    save_head(head, tmp_path, LAYERS)
    edit(tmp_path, config={"tie_word_embeddings": tied})
    assert torch.equal(load_head(tmp_path, TARGET).lm_head.weight, head.lm_head.weight)
    edit(tmp_path, tensors={"lm_head.weight": None})
    loaded = load_head(tmp_path, TARGET)
    assert loaded.config.own_lm_head == tied
    if tied:
        assert torch.equal(loaded.lm_head.weight, head.embed_tokens.weight)


def test_a_head_without_an_lm_head_of_another_width_is_refused(tmp_path):
    save_head(
        random_head(hidden_size=16, own_embeddings=True, head_dim=4, draft_vocab_size=VOCABULARY), tmp_path, LAYERS
    )
    edit(tmp_path, tensors={"lm_head.weight": None}, config={"tie_word_embeddings": False})
    with pytest.raises(
        ValueError, match=r"lm_head.weight is missing: the head is 16 wide .* output layer, which reads 32"
    ):
        load_head(tmp_path, TARGET)


def test_names_that_begin_with_model(saved):
    tensors = load_file(saved / "model.safetensors")
    expected = load_head(saved, TARGET).state_dict()
    renamed = {f"model.{name}" if name != "lm_head.weight" else name: tensor for name, tensor in tensors.items()}
    save_file(renamed, saved / "model.safetensors")
    found = load_head(saved, TARGET).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("cosine", "warns"), [(1.0, False), (0.9, False), (0.0, True)])
def test_embeddings_of_another_model_are_noticed(cosine, warns):
    torch.manual_seed(0)
    target, noise = torch.randn(2, 300, 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_embeddings(cosine * target + (1 - cosine**2) ** 0.5 * noise, target)
    assert [bool("another model" in str(warning.message)) for warning in caught] == [True] * warns
    check_embeddings(target[:, :32], target)  # another width: nothing to be said


# --- what a bad checkpoint says ------------------------------------------------------------------------------------

Q = "midlayer.self_attn.q_proj.weight"
BAD_TENSORS = {
    "missing": ({"norm.weight": None}, ["norm.weight", "missing"]),
    "missing map": ({"t2d": None}, ["t2d", "missing"]),
    "unexpected": ({"midlayer.self_attn.v_norm.weight": torch.ones(8)}, ["v_norm", "unexpected"]),
    "half of the norms": ({"midlayer.self_attn.q_norm.weight": torch.ones(8)}, ["k_norm", "missing"]),
    "a missing d2t": ({"d2t": None, "t2d": None}, ["d2t is missing", "24 of the target's 40", "first ids"]),
    "an unfilled d2t": ({"d2t": torch.zeros(DRAFT, dtype=torch.int64)}, ["d2t is all zeros", "24 of 40"]),
    "first ids": (
        {"d2t": torch.zeros(DRAFT, dtype=torch.int64), "t2d": torch.arange(VOCABULARY) < DRAFT},
        ["d2t is all zeros", "first ids"],
    ),
    "shape": ({Q: torch.zeros(31, 2 * WIDTH)}, [Q, "32, 64", "31, 64"]),
    "no dimensions": ({Q: torch.zeros(())}, [Q, "32, 64", "[]"]),
    "transposed": ({"fc.weight": torch.zeros(3 * WIDTH, WIDTH)}, ["fc.weight", "32, 96", "96, 32"]),
    "integers": ({"fc.weight": torch.zeros(WIDTH, 3 * WIDTH, dtype=torch.int8)}, ["fc.weight", "int8"]),
    "not finite": ({"norm.weight": torch.full((WIDTH,), float("nan"))}, ["norm.weight", "NaN"]),
    "t2d sum": ({"t2d": torch.ones(VOCABULARY, dtype=torch.bool)}, ["t2d", "40", "24"]),
    "ids for offsets": ({"d2t": torch.arange(DRAFT) * 2 + 1}, ["d2t", "outside", "offsets"]),
    "disagreeing": ({"d2t": torch.ones(DRAFT, dtype=torch.int64)}, ["d2t", "t2d", "disagree"]),
    "float map": ({"d2t": torch.zeros(DRAFT)}, ["d2t", "integers"]),
}
BAD_CONFIGS = {
    "taps": ({"eagle_aux_hidden_state_layer_ids": [2, 4, 8]}, ["eagle_aux_hidden_state_layer_ids", "8", "0..7"]),
    "negative taps": ({"eagle_aux_hidden_state_layer_ids": [-1, 4, 7]}, ["eagle_aux_hidden_state_layer_ids", "-1"]),
    "two taps": ({"eagle_aux_hidden_state_layer_ids": [2, 4]}, ["fc.weight", "[32, 64]", "[32, 96]"]),
    "vocabulary": ({"vocab_size": 41}, ["vocab_size", "41", "40"]),
    "hidden size": ({"target_hidden_size": 64}, ["hidden size", "64", "32"]),
    "flag": ({"norm_everything": True}, ["norm_everything", "norm_before_fc"]),
    "nested flag": ({"eagle_config": {"norm_everything": True}}, ["eagle_config", "norm_everything"]),
    "both norms": ({"fc_norm": True, "norm_before_fc": True}, ["fc_norm", "norm_before_fc"]),
    "bias": ({"attention_bias": True}, ["missing", "midlayer.self_attn.q_proj.bias"]),
    "mlp bias": ({"mlp_bias": True}, ["missing", "midlayer.mlp.gate_proj.bias"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
    "layers": ({"num_hidden_layers": 2}, ["num_hidden_layers is 2", "weights hold 1"]),
    "a window for nobody": ({"sliding_window": 4}, ["sliding_window is 4", "layer_types"]),
    "a window without layers": (
        {"sliding_window": 4, "use_sliding_window": True},
        ["use_sliding_window", "layer_types"],
    ),
    "layer types": ({"layer_types": ["linear_attention"]}, ["layer_types", "linear_attention", "full_attention"]),
    "too many layer types": ({"layer_types": ["full_attention"] * 2}, ["layer_types", "1 layers"]),
    "no window": ({"layer_types": ["sliding_attention"]}, ["sliding_window is None", "positive integer"]),
    "no map": ({"draft_vocab_size": VOCABULARY}, ["lm_head.weight", "24 rows", "40"]),
    "gemma 4": ({"architectures": ["Gemma4Eagle3Model"]}, ["Gemma4Eagle3Model", "five norms"]),
    "other layers": ({"num_target_layers": 9}, ["num_target_layers is 9", "target has 8", "another target"]),
    "deepspec's taps": ({"architectures": ["Qwen3Eagle3Model"]}, ["target_layer_ids is missing"]),
    "rope": ({"rope_scaling": {"type": "mrope"}}, ["rope type", "mrope", "linear"]),
    "no size": ({"hidden_size": None}, ["hidden_size"]),
    "number as text": ({"draft_vocab_size": "24"}, ["draft_vocab_size", "'24'", "positive integer"]),
    "head_dim as text": ({"head_dim": "8"}, ["head_dim", "'8'"]),
    "eps as text": ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps", "positive finite number"]),
    "flag as text": ({"norm_output": "false"}, ["norm_output", "'false'", "true or false"]),
    "groups": ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "divisor of 4"]),
    "draft vocabulary": ({"draft_vocab_size": 50}, ["draft_vocab_size", "50", "at most", "40"]),
    "taps as text": ({"eagle_aux_hidden_state_layer_ids": "2,4,5"}, ["layer_ids is '2,4,5'", "list"]),
    "eagle_config": ({"eagle_config": [1]}, ["eagle_config", "[1]", "object"]),
    "half a rope": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["rope_parameters", "low_freq_factor"]),
    "rope by layer": ({"rope_parameters": {"sliding_attention": {"rope_theta": 5e5}}}, ["rope_parameters", "full_att"]),
    "part of the rotary": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5", "1.0"]),
    "rope text": ({"rope_scaling": "linear"}, ["rope_scaling", "'linear'", "object"]),
    "theta": ({"rope_theta": "1e4"}, ["rope_theta", "'1e4'", "positive finite number"]),
    "another model": ({"architectures": ["OPTForCausalLM"]}, ["architectures", "OPTForCausalLM", "SpecForge"]),
    "eps NaN": ({"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan", "positive finite number"]),
    "eps infinite": ({"rms_norm_eps": float("inf")}, ["rms_norm_eps is inf", "positive finite number"]),
    "theta NaN": ({"rope_theta": float("nan")}, ["rope_theta is nan", "positive finite number"]),
    "rope factor 0": (
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        ["factor is 0", "positive finite number"],
    ),
    "rope factor NaN": (
        {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
        ["factor is nan", "positive finite number"],
    ),
    "long rope": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [0.0] * 4, "long_factor": [1.0] * 4}},
        ["rope"],
    ),
    "flag as a number": ({"norm_output": 1}, ["norm_output is 1", "true or false"]),
    "architectures as a number": ({"architectures": 3}, ["architectures is 3", "list"]),
    "architectures as a text": ({"architectures": "LlamaForCausalLM"}, ["architectures is 'LlamaForCausalLM'", "list"]),
    "a huge size": ({"intermediate_size": 10**30}, ["intermediate_size", "positive integer"]),
    "a taps list of booleans": ({"eagle_aux_hidden_state_layer_ids": [True, 4, 5]}, ["layer_ids", "list"]),
    "taps as a number": ({"eagle_aux_hidden_state_layer_ids": 3}, ["layer_ids is 3", "list"]),
    "odd head_dim": ({"head_dim": 7}, ["head_dim", "even"]),
    "a flag without its tensors": ({"norm_before_fc": True}, ["missing", "input_norm.weight"]),
}


@pytest.mark.parametrize(("change", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors(saved, change, words):
    edit(saved, tensors=change)
    with pytest.raises(ValueError, match=re.escape(str(saved))) as error:
        load_head(saved, TARGET)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(("change", "words"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs(saved, change, words):
    edit(saved, config=change)
    with pytest.raises(ValueError, match=re.escape(f"draft head '{saved}'")) as error:
        load_head(saved, TARGET)
    assert all(word in str(error.value) for word in words), error.value


def test_an_index_without_its_map_and_a_layer_that_is_there_twice(saved):
    edit(saved, tensors={"layers.0.hidden_norm.weight": torch.ones(WIDTH)})
    with pytest.raises(ValueError, match=f"draft head '{saved}': tensors: the layer is there twice"):
        load_head(saved, TARGET)
    (saved / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="weight_map is None; expected the file of every tensor"):
        load_head(saved, TARGET)


def test_another_targets_head(saved):
    wider = LlamaConfig(hidden_size=64, vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
    with pytest.raises(ValueError, match=r"hidden size.*32.*64"):
        load_head(saved, wider)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_named(saved, name):
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(LFS)
    message = (
        f"draft head '{saved}': {saved / name}: a Git LFS pointer, not the weights (12345 bytes); run `git lfs pull`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_head(saved, TARGET)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04", b"not a checkpoint", b"\x00" * 64])
def test_a_bad_pickle_shows_none_of_torchs_advice(saved, content):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="pytorch_model.bin: cannot be read as tensors") as error:
        load_head(saved, TARGET)
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd", "sub/x.safetensors", "", 3, None])
def test_an_index_may_name_files_beside_it_only(saved, place):
    (saved / "model.safetensors").rename(saved.parent / "elsewhere.safetensors")
    index = {"weight_map": {"fc.weight": place, "norm.weight": place}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json: weight_map names .* expected the name of a file beside it"):
        load_head(saved, TARGET)


def test_an_index_through_a_link_out_of_the_folder(saved):
    """The hub's cache links to its blobs: a link is followed, whatever it points to, as it is for a single file."""
    (saved / "model.safetensors").rename(saved.parent / "blob")
    (saved / "part.safetensors").symlink_to(saved.parent / "blob")
    index = {"weight_map": dict.fromkeys(load_file(saved.parent / "blob"), "part.safetensors")}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_head(saved, TARGET).config.taps == (2, 4, 5)


def test_a_shard_that_is_missing_is_named(saved):
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": "part.safetensors"}}))
    with pytest.raises(ValueError, match=r"part\.safetensors.* is missing"):
        load_head(saved, TARGET)


def test_values_that_a_cast_makes_infinite_are_refused(tmp_path):
    """bfloat16 reaches 3e38, float16 65,504: what is finite in the file must be so in the dtype that is computed in."""
    head = random_head().to(torch.bfloat16)
    with torch.no_grad():
        head.fc.weight[0, 0] = 1e6
    save_head(head, tmp_path, LAYERS)
    assert load_head(tmp_path, TARGET).fc.weight[0, 0] > 9e5
    with pytest.raises(ValueError, match=r"tensor fc\.weight: .* in torch\.float16; load it as float32 or bfloat16"):
        load_head(tmp_path, TARGET, dtype=torch.float16)


@pytest.mark.parametrize("text", ["{", "", "[]", "[" * 100_000, "\ufeff{}", '{"hidden_size": 1e999}'])
def test_a_damaged_config(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
        load_head(saved, TARGET)
    assert "\n" not in str(error.value)


def test_overrides_are_checked_like_the_file(saved):
    with pytest.raises(ValueError, match="rope_theta is nan"):
        load_head(saved, TARGET, rope_theta=float("nan"))
    with pytest.raises(ValueError, match="taps"):
        load_head(saved, TARGET, taps=(1, 2))


class Harmful:
    """A pickle that would run code when opened."""

    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_pickle_with_code_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (saved / "model.safetensors").unlink()
    torch.save({"fc.weight": Harmful()}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="never executed"):
        load_head(saved, TARGET)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 64])
def test_a_file_cut_short(saved, content):
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_head(saved, TARGET)


def test_missing_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither a directory"):
        load_head(tmp_path / "nowhere", TARGET)
    with pytest.raises(ValueError, match="expected model.safetensors or pytorch_model.bin"):
        load_head(tmp_path, TARGET)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_head(tmp_path, TARGET)


def test_a_save_that_dies_leaves_the_old_head(saved, monkeypatch):
    before = load_head(saved, TARGET).state_dict()

    def dies(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("eagle.checkpoints.load.save_file", dies)
    with pytest.raises(OSError, match="disk full"):
        save_head(random_head(norm_output=True), saved, LAYERS)
    after = load_head(saved, TARGET).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


# --- targets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    return tmp_path / "target"


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["nothing", "half a length", "half a header", "one byte less"])
def test_a_truncated_target_is_one_sentence_with_the_file(target, kept):
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=r"target '.*target': .*model\.safetensors.*(end inside|expected \d+)"
    ) as error:
        load_lm(str(target), LoadOptions(torch.float32, None, "sdpa"))
    assert "\n" not in str(error.value)


def test_a_target_that_is_a_git_lfs_pointer_or_has_no_config(target):
    options = LoadOptions(torch.float32, None, "sdpa")
    assert load_lm(str(target), options).config.hidden_size == 16
    (target / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(ValueError, match=r"config\.json: not JSON .* cut short"):
        load_lm(str(target), options)
    (target / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_lm(str(target), options)
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(LFS)
    with pytest.raises(ValueError, match="a Git LFS pointer"):
        load_lm(str(target), options)
