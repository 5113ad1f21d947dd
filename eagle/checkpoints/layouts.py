"""The config.json files this package writes: SafeAILab's flat one and the nested one of the speculators library.

What is not the published default is written in every spelling that engines read: taps as layer inputs at the top level
(vLLM) and as layer outputs in `eagle_config` (SGLang), flags at the top level, rope in the old spelling (which
transformers 5 reads as well).
"""

from eagle.checkpoints.formats import FLAGS
from eagle.nn.head import DEFAULT_ROPE, HeadConfig, default_taps

PUBLISHED_TAPS = 3


def layer_shape(config: HeadConfig) -> dict:
    """The keys that both layouts share: the head's layers as a Llama, or a Qwen 3, of so many layers."""
    return {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        **written_rope(config),
        "vocab_size": config.vocab_size,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        **written_windows(config),
        **({} if len(config.taps) == PUBLISHED_TAPS else {"num_aux_hidden_states": len(config.taps)}),  # vLLM's key
    }


def written_windows(config: HeadConfig) -> dict:
    """Which layers have a sliding window, and its size; nothing where none has. ValueError for windows of two sizes."""
    if config.sliding_windows is None:
        return {}
    sizes = {window for window in config.sliding_windows if window is not None}
    if len(sizes) > 1:
        raise ValueError(f"sliding windows {sorted(sizes)}: a config.json holds one size; train the layers with one")
    types = ["full_attention" if window is None else "sliding_attention" for window in config.sliding_windows]
    return {"sliding_window": min(sizes, default=None), "use_sliding_window": True, "layer_types": types}


def safeailab_config(config: HeadConfig, dtype: str, target_layers: int | None = None) -> dict:
    """config.json in the SafeAILab style. Taps are left out where they are a target of that depth's default ones."""
    written = {
        "architectures": ["Eagle3Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        **layer_shape(config),
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
    }
    if config.target_hidden_size != config.hidden_size:
        written["target_hidden_size"] = config.target_hidden_size
    written.update({flag: True for flag in FLAGS if getattr(config, flag)})
    if target_layers is None or config.taps != default_taps(target_layers):
        written["eagle_aux_hidden_state_layer_ids"] = list(config.taps)
        written["eagle_config"] = {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in config.taps],
        }
    return written


def speculators_config(config: HeadConfig, dtype: str, verifier: str | None, architectures: list[str]) -> dict:
    """config.json in the style of the speculators library, which vLLM reads as well.

    It has no top-level `model_type`: vLLM takes it for a speculators config only then.
    """
    if config.embeds_in_every_layer and config.num_hidden_layers > 1:
        raise ValueError("a head whose every layer reads embeddings has no place in a speculators checkpoint")
    if config.qkv_bias and not config.o_bias and not config.qk_norm:
        raise ValueError(
            "a Llama layer with biases on q, k and v and none on the output has no place in a speculators checkpoint, "
            "whose attention_bias means all four; export it as safeailab"
        )
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "draft_vocab_size": config.draft_vocab_size,
        "eagle_aux_hidden_state_layer_ids": list(config.taps),
        "target_hidden_size": None if config.target_hidden_size == config.hidden_size else config.target_hidden_size,
        **{flag: getattr(config, flag) for flag in FLAGS},
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
            ],
            "verifier": {"name_or_path": verifier, "architectures": architectures},
        },
        "transformer_layer_config": {
            **layer_shape(config),
            "tie_word_embeddings": False,
        },
        "torch_dtype": dtype,
    }


def written_rope(config: HeadConfig) -> dict:
    """rope_theta and rope_scaling: the old spelling, which transformers 5 reads as well."""
    rope = dict(config.rope_parameters or DEFAULT_ROPE)
    theta = rope.pop("rope_theta", 10000.0)
    return {"rope_theta": theta, "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope}
