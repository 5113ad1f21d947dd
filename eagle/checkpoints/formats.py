"""The config.json of the public EAGLE-3 heads: four families, one `HeadConfig`.

    safeailab     architectures ["LlamaForCausalLM"], flat keys, `draft_vocab_size`
    specforge     architectures ["LlamaForCausalLMEagle3"], flat keys, taps in eagle_config as layer *outputs*
    angelslim     architectures ["Eagle3LlamaForCausalLM"], flat keys
    speculators   `speculators_model_type`, the layer's keys nested in transformer_layer_config, taps as layer *inputs*

A flag that is on and not known here could change what the head computes, so it is refused, not ignored.
"""

import math
import warnings
from collections.abc import Mapping

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from eagle.nn.head import HeadConfig, default_taps

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Switches that are on in real configs and change nothing in the head's arithmetic.
HARMLESS = {
    "use_cache",
    "tie_word_embeddings",
    "return_dict",
    "use_aux_hidden_state",
    "has_no_defaults_at_init",
    "embed_requires_grad",
    "enable_sp_ulysses",
    "is_decoder",
    "use_return_dict",
    "output_hidden_states",
    "use_last_layernorm",
    "use_input_layernorm_in_first_layer",
}
# Settings that would change it, with the only value for which they do not.
NEUTRAL = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "num_hidden_layers": 1,
    "quantization_config": None,
    "logit_scale": 1.0,
    "qkv_bias": False,
    "bias": False,
    "partial_rotary_factor": 1.0,
}
ANGELSLIM_THETA = 10000.0
LARGEST_SIZE, LARGEST_NUMBER = 2**31, 1e30  # what no head reaches and every tensor operation can still hold


def family_of(config: Mapping) -> str:
    """Which of the four families wrote this config.json, recognised by its keys."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"config.json: architectures is {architectures!r}; expected a list of class names")
    if "speculators_model_type" in config or "transformer_layer_config" in config:
        return "speculators"
    if "LlamaForCausalLMEagle3" in architectures:
        return "specforge"
    if "Eagle3LlamaForCausalLM" in architectures:
        return "angelslim"
    if "LlamaForCausalLM" in architectures and ("draft_vocab_size" in config or "eagle_config" in config):
        return "safeailab"
    raise ValueError(
        f"config.json: not an EAGLE-3 head: architectures {architectures!r}; expected one of 'LlamaForCausalLM' with "
        "draft_vocab_size (SafeAILab), 'LlamaForCausalLMEagle3' (SpecForge), 'Eagle3LlamaForCausalLM' (AngelSlim), or "
        "the keys speculators_model_type / transformer_layer_config (speculators)"
    )


def check_settings(settings: Mapping, where: str) -> None:
    """Refuse what this head cannot compute: unknown switches that are on, known settings off their neutral value."""
    for key, value in settings.items():
        if key in NEUTRAL and value is not None and value != NEUTRAL[key]:
            raise ValueError(f"{where}: {key} is {value!r}; only {NEUTRAL[key]!r} is supported")
        if key in FLAGS and value is not None and not isinstance(value, bool):
            raise ValueError(f"{where}: {key} is {value!r}; expected true or false")
        if value is True and key not in FLAGS and key not in HARMLESS:
            raise ValueError(
                f"{where}: unknown flag {key!r} is true; known flags are {', '.join(FLAGS)}. "
                "If it does not change what the head computes, remove it from config.json"
            )


def mapping(settings: Mapping, key: str) -> Mapping:
    """The settings nested under `key`; empty where there are none."""
    value = settings.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"config.json: {key} is {value!r}; expected a JSON object")
    return value or {}


def rope_parameters(settings: Mapping) -> dict:
    """{"rope_type", "rope_theta", ...} from rope_parameters (new) or rope_theta and rope_scaling (old)."""
    given = mapping(settings, "rope_parameters") or mapping(settings, "rope_scaling")
    if given.get("partial_rotary_factor") not in (None, 1):
        found = given["partial_rotary_factor"]
        raise ValueError(f"config.json: partial_rotary_factor is {found!r} in its rope settings; only 1.0 is supported")
    per_layer = [key for key, value in given.items() if isinstance(value, Mapping)]
    if per_layer:
        raise ValueError(f"config.json: rope_parameters differ by layer type ({', '.join(per_layer)}); a head has one")
    rope = {key: value for key, value in given.items() if key != "type"}
    rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    known = ["default", *ROPE_INIT_FUNCTIONS]
    if rope["rope_type"] not in known:
        raise ValueError(f"config.json: rope type is {rope['rope_type']!r}; known: {', '.join(known)}")
    for key, value in rope.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, (int, float)) and not math.isfinite(entry):
                raise ValueError(
                    f"config.json: {key} is {value!r} in its rope settings; expected positive finite numbers"
                )
    positive_number(rope, "factor", 1.0)
    rope["rope_theta"] = float(positive_number(given, "rope_theta", positive_number(settings, "rope_theta", 10000.0)))
    return rope


def read_taps(config: Mapping, target_layers: int | None) -> tuple[int, ...]:
    """Layers whose inputs are read. Top-level ids are inputs, ids in `eagle_config` outputs (one less)."""
    key = "eagle_aux_hidden_state_layer_ids"
    ids, nested = config.get(key), mapping(config, "eagle_config").get(key)
    for given in (ids, nested):
        if given is not None and not (isinstance(given, list) and all(type(i) is int for i in given)):
            raise ValueError(f"config.json: {key} is {given!r}; expected a list of three layer numbers")
    if ids:
        return tuple(ids)
    if nested:
        # Some heads write inputs there; the published default is the one case where that shows.
        inputs = target_layers is not None and tuple(nested) == default_taps(target_layers)
        return tuple(nested) if inputs else tuple(i + 1 for i in nested)
    if target_layers is None:
        raise ValueError(
            "config.json names no feature taps, and the target's layer count is needed for the default ones: "
            "give --target"
        )
    return default_taps(target_layers)


def layer_settings(config: Mapping, family: str) -> dict:
    """The keys that describe the decoder layer, flat."""
    if family != "speculators":
        return dict(config)
    nested = config.get("transformer_layer_config")
    if not isinstance(nested, Mapping):
        raise ValueError(f"config.json: transformer_layer_config is {nested!r}; expected the layer's settings")
    if nested.get("model_type", "llama") != "llama":
        found = nested["model_type"]
        raise ValueError(f"config.json: transformer_layer_config.model_type is {found!r}; expected 'llama'")
    check_settings(nested, "config.json: transformer_layer_config")
    defaults = LlamaConfig().to_dict()  # speculators leaves out what equals the defaults of LlamaConfig
    return {**defaults, "head_dim": None, "num_key_value_heads": None, "rope_parameters": None, **nested}


def positive_number(settings: Mapping, key: str, default: float, where: str = "config.json") -> float:
    """A positive finite number; `default` where there is none."""
    value = settings.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST_NUMBER:
        raise ValueError(f"{where}: {key} is {value!r}; expected a positive finite number")
    return value


def size(settings: Mapping, key: str, default: int | None = None) -> int:
    """A positive integer; where there is none `default`, which None means that there must be one."""
    value = settings.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST_SIZE:
        raise ValueError(f"config.json: {key} is {value!r}; expected a positive integer below {LARGEST_SIZE}")
    return value


def head_dim_of(settings: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """As stated; else hidden / heads, unless q_proj and o_proj agree on another size (some configs leave it out)."""
    heads = size(settings, "num_attention_heads")
    q = shapes.get("midlayer.self_attn.q_proj.weight", (0, 0))
    o = shapes.get("midlayer.self_attn.o_proj.weight", (0, 0))
    known = len(q) == len(o) == 2  # whatever else they are, the comparison of shapes will name it
    agreed = q[0] // heads if known and q[0] == o[1] and q[0] > 0 and q[0] % heads == 0 else None
    found = size(settings, "head_dim", agreed or size(settings, "hidden_size") // heads)
    if found % 2:
        raise ValueError(f"config.json: head_dim is {found}; expected an even number, which rotary positions need")
    return found


def read_config(config: Mapping, shapes: Mapping[str, tuple[int, ...]], target_layers: int | None = None) -> HeadConfig:
    """HeadConfig of a config.json of any family. `shapes`: those of the checkpoint's tensors (`midlayer.*` names)."""
    family = family_of(config)
    check_settings(config, "config.json")
    extra = mapping(config, "eagle_config")
    check_settings(extra, "config.json: eagle_config")
    if extra.get("use_aux_hidden_state") is False:
        raise ValueError("config.json: eagle_config.use_aux_hidden_state is false; an EAGLE-3 head reads three taps")
    layer = layer_settings(config, family)
    hidden, heads, vocabulary = (size(layer, k) for k in ("hidden_size", "num_attention_heads", "vocab_size"))
    groups, draft = size(layer, "num_key_value_heads", heads), size(config, "draft_vocab_size", vocabulary)
    if heads % groups:
        raise ValueError(f"config.json: num_key_value_heads is {groups}; expected a divisor of {heads} attention heads")
    if draft > vocabulary:
        raise ValueError(f"config.json: draft_vocab_size is {draft}; expected at most vocab_size = {vocabulary}")
    flags = {flag: any(place.get(flag) for place in (config, extra, layer)) for flag in FLAGS}
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise ValueError("config.json: norm_before_fc and fc_norm are both true; they exclude each other")
    return HeadConfig(
        hidden_size=hidden,
        intermediate_size=size(layer, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim_of(layer, shapes),
        vocab_size=vocabulary,
        draft_vocab_size=draft,
        taps=read_taps(config, target_layers),
        target_hidden_size=size(config, "target_hidden_size", hidden),
        max_position_embeddings=size(layer, "max_position_embeddings", 2048),
        rms_norm_eps=positive_number(layer, "rms_norm_eps", 1e-6),
        rope_parameters=family_rope(layer, family),
        own_embeddings="embed_tokens.weight" in shapes,
        **flags,
    )


def family_rope(layer: Mapping, family: str) -> dict:
    rope = rope_parameters(layer)
    if family == "angelslim" and rope["rope_type"] == "default" and rope["rope_theta"] != ANGELSLIM_THETA:
        stated = f"{rope['rope_theta']:g}"
        warnings.warn(
            f"config.json states rope_theta {stated}, but AngelSlim's heads accept more with {ANGELSLIM_THETA:g}, "
            f"which is used; pass rope_theta={stated} to load_head to keep the stated one",
            stacklevel=2,
        )
        rope["rope_theta"] = ANGELSLIM_THETA
    return rope
