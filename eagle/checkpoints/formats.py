"""The config.json of the public EAGLE-3 heads: five families, one `HeadConfig`.

    safeailab     architectures ["LlamaForCausalLM"], flat keys, `draft_vocab_size`
    specforge     architectures ["LlamaForCausalLMEagle3"], flat keys, taps in eagle_config as layer *outputs*
    angelslim     architectures ["Eagle3LlamaForCausalLM"], flat keys
    speculators   `speculators_model_type`, the layer's keys nested in transformer_layer_config, taps as layer *inputs*
    deepspec      architectures ["Qwen3Eagle3Model"], the target's keys, taps in target_layer_ids as layer *outputs*

What a layer consists of (norms of queries and keys, biases, whether layers after the first read embeddings) is read off
the tensors, and must agree with what the config states.
A flag that is on and not known here could change what the head computes, so it is refused, not ignored.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

from transformers import LlamaConfig, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from eagle.nn.head import HeadConfig, default_taps

Shapes = Mapping[str, tuple[int, ...]]  # of a checkpoint's tensors, under their `midlayer.*` names

QK_NORM = "midlayer.self_attn.q_norm.weight"
LAYER_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}  # of a speculators head's transformer_layer_config
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
    "use_qk_norm",
    "attention_bias",
    "qkv_bias",
    "bias",
    "mlp_bias",
    "use_sliding_window",
}
# Settings that would change it, with the only value for which they do not.
NEUTRAL = {
    "hidden_act": "silu",
    "quantization_config": None,
    "logit_scale": 1.0,
    "partial_rotary_factor": 1.0,
}
BIASES = (
    "attention_bias",
    "qkv_bias",
    "bias",
)  # of q, k and v, and of the output where it has one
ANGELSLIM_THETA = 10000.0
TAPS_KEY = "eagle_aux_hidden_state_layer_ids"
MAX_TAPS = 64
LARGEST_SIZE, LARGEST_NUMBER = 2**31, 1e30  # what no head reaches and every tensor operation can still hold


def family_of(config: Mapping) -> str:
    """Which of the five families wrote this config.json, recognised by its keys."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"config.json: architectures is {architectures!r}; expected a list of class names")
    if "speculators_model_type" in config or "transformer_layer_config" in config:
        return "speculators"
    if "Qwen3Eagle3Model" in architectures:
        return "deepspec"
    if "Gemma4Eagle3Model" in architectures:
        raise ValueError(
            "config.json: architectures names Gemma4Eagle3Model: a layer with five norms, normed values, keys that are "
            "values too, partial rotary positions and capped logits, none of which this head computes, and its target, "
            "Gemma 4, is not supported either; use a head for another target"
        )
    if "LlamaForCausalLMEagle3" in architectures:
        return "specforge"
    if "Eagle3LlamaForCausalLM" in architectures:
        return "angelslim"
    if "Eagle3Qwen3ForCausalLM" in architectures:  # vLLM's name for a flat config whose layer is Qwen 3's
        return "safeailab"
    if "LlamaForCausalLM" in architectures and ("draft_vocab_size" in config or "eagle_config" in config):
        return "safeailab"
    raise ValueError(
        f"config.json: not an EAGLE-3 head: architectures {architectures!r}; expected one of 'LlamaForCausalLM' with "
        "draft_vocab_size (SafeAILab), 'LlamaForCausalLMEagle3' (SpecForge), 'Eagle3LlamaForCausalLM' (AngelSlim), "
        "'Qwen3Eagle3Model' (DeepSpec), or the keys speculators_model_type / transformer_layer_config (speculators)"
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


def rope_parameters(settings: Mapping, layer_types: Sequence[str] = ("full_attention",)) -> dict:
    """{"rope_type", "rope_theta", ...} from rope_parameters (new) or rope_theta and rope_scaling (old).

    Where the parameters differ by layer type, those of the one type that the head's layers have.
    """
    given = mapping(settings, "rope_parameters") or mapping(settings, "rope_scaling")
    per_layer = [key for key, value in given.items() if isinstance(value, Mapping)]
    if per_layer:
        kinds = set(layer_types)
        if len(kinds) > 1 or not kinds <= set(per_layer):
            raise ValueError(
                f"config.json: rope_parameters differ by layer type ({', '.join(per_layer)}); a head has one, for its "
                f"layers {', '.join(sorted(kinds))}"
            )
        given = given[kinds.pop()]
    if given.get("partial_rotary_factor") not in (None, 1):
        found = given["partial_rotary_factor"]
        raise ValueError(f"config.json: partial_rotary_factor is {found!r} in its rope settings; only 1.0 is supported")
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


def tap_list(settings: Mapping, key: str) -> tuple[int, ...] | None:
    """The layer numbers under `key`, as they are written; None where there are none."""
    given = settings.get(key)
    if given is None:
        return None
    if not (isinstance(given, list) and all(type(i) is int for i in given) and len(given) <= MAX_TAPS):
        raise ValueError(f"config.json: {key} is {given!r}; expected a list of layer numbers, at most {MAX_TAPS}")
    return tuple(given) or None


def read_taps(config: Mapping, target_layers: int | None) -> tuple[int, ...]:
    """Layers whose inputs are read. Top-level ids are inputs; in `eagle_config`, and DeepSpec's, outputs (one less)."""
    if family_of(config) == "deepspec":
        outputs = tap_list(config, "target_layer_ids")
        if outputs is None:
            raise ValueError(
                "config.json: target_layer_ids is missing; a DeepSpec head names the layers it reads there"
            )
        return tuple(i + 1 for i in outputs)
    ids, nested = tap_list(config, TAPS_KEY), tap_list(mapping(config, "eagle_config"), TAPS_KEY)
    if ids:
        return ids
    if nested:
        # Some heads write inputs there; the published default is the one case where that shows.
        inputs = target_layers is not None and nested == default_taps(target_layers)
        return nested if inputs else tuple(i + 1 for i in nested)
    if target_layers is None:
        raise ValueError(
            "config.json names no feature taps, and the target's layer count is needed for the default ones: "
            "give --target"
        )
    return default_taps(target_layers)


def check_target_layers(config: Mapping, target_layers: int | None) -> None:
    """ValueError where the config states another number of target layers (DeepSpec does state one)."""
    stated = config.get("num_target_layers")
    if stated is not None and target_layers is not None and stated != target_layers:
        raise ValueError(
            f"config.json: num_target_layers is {stated!r}, the target has {target_layers}; this head belongs to "
            "another target"
        )


def layer_settings(config: Mapping, family: str, shapes: Shapes) -> dict:
    """The keys that describe the decoder layer, flat."""
    if family != "speculators":
        return dict(config)
    nested = config.get("transformer_layer_config")
    if not isinstance(nested, Mapping):
        raise ValueError(f"config.json: transformer_layer_config is {nested!r}; expected the layer's settings")
    # speculators leaves out what equals the defaults of the layer's own config class: Llama's until it was Qwen 3's.
    kind = nested.get("model_type", "qwen3" if QK_NORM in shapes else "llama")
    if kind not in LAYER_CONFIGS:
        raise ValueError(
            f"config.json: transformer_layer_config.model_type is {kind!r}; expected one of {', '.join(LAYER_CONFIGS)}"
        )
    check_settings(nested, "config.json: transformer_layer_config")
    unknown = {"head_dim": None, "num_key_value_heads": None, "rope_parameters": None, "layer_types": None}
    if kind == "qwen3":
        unknown.pop("num_key_value_heads")
    return {**LAYER_CONFIGS[kind]().to_dict(), **unknown, "num_hidden_layers": 1, "model_type": kind, **nested}


def layer_types_of(settings: Mapping, layers: int) -> list[str]:
    """For every layer of the head, "full_attention" or "sliding_attention"."""
    types = settings.get("layer_types")
    if types is None:
        first = layers
        if settings.get("use_sliding_window") and settings.get("sliding_window") is not None:
            if "max_window_layers" not in settings:
                raise ValueError(
                    "config.json: use_sliding_window is true without max_window_layers or layer_types; say in "
                    "layer_types which layers have the window"
                )
            first = size(settings, "max_window_layers")
        return ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    known = isinstance(types, list) and all(kind in ("full_attention", "sliding_attention") for kind in types)
    if not known or len(types) != layers:
        raise ValueError(
            f"config.json: layer_types is {types!r}; expected full_attention or sliding_attention for each of the "
            f"{layers} layers"
        )
    return types


def sliding_windows(settings: Mapping, types: Sequence[str]) -> tuple[int | None, ...] | None:
    """Each layer's window; None where no layer has one. A window that no key assigns to layers is refused."""
    stated = settings.get("sliding_window")
    if "sliding_attention" in types:
        window = size(settings, "sliding_window")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if stated is not None and settings.get("layer_types") is None and settings.get("use_sliding_window") is None:
        raise ValueError(
            f"config.json: sliding_window is {stated!r}, and nothing says which layers have it; set layer_types, or "
            "sliding_window to null where the head was trained without one"
        )
    return None


def layer_count(settings: Mapping, shapes: Shapes) -> int:
    """num_hidden_layers, which must be what the weights hold."""
    stated = size(settings, "num_hidden_layers", 1)
    numbers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    if shapes and stated != len(numbers) + 1:
        raise ValueError(f"config.json: num_hidden_layers is {stated}; the weights hold {len(numbers) + 1} layers")
    return stated


def biases_of(settings: Mapping, shapes: Shapes) -> dict[str, bool]:
    """Which products have biases: what the tensors hold, unless the config states that there are none."""
    stated = [settings.get(key) for key in BIASES if settings.get(key) is not None]
    mlp, attention = settings.get("mlp_bias"), "midlayer.self_attn.{}_proj.bias"
    allowed = not stated or any(stated)
    return {
        "qkv_bias": any(stated) or (allowed and attention.format("q") in shapes),
        "o_bias": allowed and attention.format("o") in shapes,
        "mlp_bias": bool(mlp) or (mlp is None and "midlayer.mlp.gate_proj.bias" in shapes),
    }


def vocabularies(config: Mapping, layer: Mapping, shapes: Shapes) -> tuple[int, int]:
    """The target's vocabulary and the head's, which must be that of its output layer."""
    vocabulary, rows = size(layer, "vocab_size"), shapes.get("lm_head.weight", ())
    mapped = rows[0] if len(rows) == 2 and rows[0] > 0 and shapes.get("d2t") == rows[:1] else vocabulary
    draft = size(config, "draft_vocab_size", mapped)
    if draft > vocabulary:
        raise ValueError(f"config.json: draft_vocab_size is {draft}; expected at most vocab_size = {vocabulary}")
    if len(rows) == 2 and rows[0] < draft == vocabulary:
        raise ValueError(
            f"tensor lm_head.weight: {rows[0]} rows for a vocabulary of {vocabulary}, and neither draft_vocab_size nor "
            "d2t says which tokens they stand for: the first ids are not the draft vocabulary; get the map from the "
            "head's trainer"
        )
    return vocabulary, draft


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


def head_dim_of(settings: Mapping, shapes: Shapes) -> int:
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


def read_config(config: Mapping, shapes: Shapes, target_layers: int | None = None) -> HeadConfig:
    """HeadConfig of a config.json of any family. `shapes`: those of the checkpoint's tensors (`midlayer.*` names)."""
    family = family_of(config)
    check_settings(config, "config.json")
    extra = mapping(config, "eagle_config")
    check_settings(extra, "config.json: eagle_config")
    if extra.get("use_aux_hidden_state") is False:
        raise ValueError("config.json: eagle_config.use_aux_hidden_state is false; an EAGLE-3 head reads taps")
    check_target_layers(config, target_layers)
    layer = layer_settings(config, family, shapes)
    hidden, heads = size(layer, "hidden_size"), size(layer, "num_attention_heads")
    (vocabulary, draft), groups = vocabularies(config, layer, shapes), size(layer, "num_key_value_heads", heads)
    if heads % groups:
        raise ValueError(f"config.json: num_key_value_heads is {groups}; expected a divisor of {heads} attention heads")
    flags = {flag: any(place.get(flag) for place in (config, extra, layer)) for flag in FLAGS}
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise ValueError("config.json: norm_before_fc and fc_norm are both true; they exclude each other")
    layers = layer_count(layer, shapes)
    types = layer_types_of(layer, layers)
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
        rope_parameters=family_rope(layer, family, types),
        own_embeddings="embed_tokens.weight" in shapes,
        own_lm_head="lm_head.weight" in shapes or draft != vocabulary,
        num_hidden_layers=layers,
        embeds_in_every_layer=shapes.get("layers.1.self_attn.q_proj.weight", (0, 0))[-1:] == (2 * hidden,),
        qk_norm=QK_NORM in shapes
        or family == "deepspec"
        or (family, layer.get("model_type")) == ("speculators", "qwen3"),
        sliding_windows=sliding_windows(layer, types),
        **biases_of(layer, shapes),
        **flags,
    )


def family_rope(layer: Mapping, family: str, layer_types: Sequence[str]) -> dict:
    rope = rope_parameters(layer, layer_types)
    if family == "angelslim" and rope["rope_type"] == "default" and rope["rope_theta"] != ANGELSLIM_THETA:
        stated = f"{rope['rope_theta']:g}"
        warnings.warn(
            f"config.json states rope_theta {stated}, but AngelSlim's heads accept more with {ANGELSLIM_THETA:g}, "
            f"which is used; pass rope_theta={stated} to load_head to keep the stated one",
            stacklevel=2,
        )
        rope["rope_theta"] = ANGELSLIM_THETA
    return rope
