"""Tiny random targets of every supported family, and a random head for them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.nn.head import Eagle3Head, HeadConfig, default_taps

VOCAB, LAYERS = 60, 8
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MOE = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}
FAMILIES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "granite": {
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
        "logits_scaling": 1.5,
    },
    "mixtral": {"sliding_window": None, **MOE},
    "granitemoe": {"logits_scaling": 0.5, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, **MOE},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 4, "tie_word_embeddings": True},
    "gpt_oss": {"head_dim": 8, "sliding_window": 4, **MOE},
    "llama4_text": {
        "head_dim": 8,
        "attention_chunk_size": 4,
        "no_rope_layer_interval": 4,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 64,
        **MOE,
    },
    "olmo2": {},
    "phi3": {"sliding_window": 4},
    "smollm3": {"no_rope_layer_interval": 4, "use_sliding_window": False},
    "qwen3_moe": {"head_dim": 8, "mlp_only_layers": [], **MOE},
}

WINDOWED = {"gemma3_text", "gpt_oss", "llama4_text", "phi3"}  # layers that see the latest tokens only: test_windows.py


def tiny_target(family: str = "llama", seed: int = 0, spread: float = 0.3, **changes):
    """A model whose laws are far from uniform, so that wrong attention shows."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or name.endswith("sinks"):
                weight.normal_(0, spread)
    return model


def tiny_head(
    target, seed: int = 1, spread: float = 0.15, draft_vocab: int = VOCAB, taps: tuple[int, ...] | None = None
) -> Eagle3Head:
    torch.manual_seed(seed)
    config = target.config
    head = Eagle3Head(
        HeadConfig(
            hidden_size=config.hidden_size,
            intermediate_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=config.vocab_size,
            draft_vocab_size=draft_vocab,
            taps=taps or default_taps(config.num_hidden_layers),
            target_hidden_size=config.hidden_size,
        )
    )
    with torch.no_grad():
        for weight in head.parameters():
            if weight.ndim > 1:
                weight.normal_(0, spread)
    if draft_vocab < config.vocab_size:
        kept = torch.randperm(config.vocab_size)[:draft_vocab].sort().values
        head.d2t.copy_(kept - torch.arange(draft_vocab))
        head.t2d[kept] = True
    return head


def with_prompts(lm, prompts: list[list[int]], scratch: int, capacity: int = 40, slack: int = 8):
    """The `CachedLM`, with these prompts read into its first rows, which are in use."""
    lm.cache.reserve(len(prompts), scratch, capacity, slack)
    for row, prompt in enumerate(prompts):
        lm.read_prompt(row, prompt)
    lm.cache.use(len(prompts))
    return lm
