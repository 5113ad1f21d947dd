"""Pairs with random weights in the shape of known models: the time of a step does not depend on the weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle import EagleModel
from eagle.nn.head import Eagle3Head, HeadConfig, default_taps

SHAPES = {  # family and target config; `draft_vocab` and `draft_intermediate` describe the head
    "demo": (
        "llama",
        {
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
        },
        4096,
    ),
    "llama-3.1-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
        32000,
    ),
    "qwen3-8b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
        },
        32000,
    ),
}


def random_pair(name: str, dtype: torch.dtype, device: torch.device, layers: int | None = None) -> EagleModel:
    """A target and a head of this shape, weights drawn on the device; `layers` shortens the target.

    Raises ValueError for an unknown shape.
    """
    if name not in SHAPES:
        raise ValueError(f"shape {name!r} is not known; known: {', '.join(SHAPES)}")
    family, shape, draft_vocab = SHAPES[name]
    if layers is not None:
        shape = {**shape, "num_hidden_layers": layers}
    config = AutoConfig.for_model(family, **shape, eos_token_id=None, bos_token_id=None)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        head = Eagle3Head(
            HeadConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                vocab_size=config.vocab_size,
                draft_vocab_size=draft_vocab,
                taps=default_taps(config.num_hidden_layers),
                target_hidden_size=config.hidden_size,
            )
        ).to(dtype)
    if head.config.has_vocabulary_map:  # the first draft_vocab ids: d2t is an offset, here 0
        head.get_buffer("t2d")[:draft_vocab] = True
    return EagleModel.from_head(model, head)
