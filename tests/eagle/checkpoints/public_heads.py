"""The public EAGLE-3 heads as tiny ones: each with its own config.json, but for the sizes, and its own tensor names.

Keys, flags and rope settings are those that the heads' trainers write, as their public code and the configs at hand
say; widths, layers of the target and vocabularies are small. `tensors` follow the trainers' modules, not this project:
names, which of them exist, and in which file.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WIDTH, VOCABULARY, DRAFT = 32, 60, 40
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}


class PublicHead(NamedTuple):
    """config.json, the layer's prefix, and what the checkpoint holds; taps and theta as they must be understood."""

    config: dict
    taps: tuple[int, ...]
    theta: float
    layer: str = "midlayer"
    head_dim: int = 8
    embeddings: bool = False
    qk_norm: bool = False
    full_vocabulary: bool = False
    pickle: bool = False
    fc_norm: bool = False
    target_width: int = WIDTH
    family: str = "llama"  # of the target
    layers: int = 8  # of the target

    def tensors(self) -> dict[str, Tensor]:
        """Random weights under the trainer's names."""
        heads, groups, inner = 4 * self.head_dim, 2 * self.head_dim, self.settings()["intermediate_size"]
        rows, layer = VOCABULARY if self.full_vocabulary else DRAFT, self.layer
        shapes = {
            "fc.weight": (WIDTH, len(self.taps) * self.target_width),
            f"{layer}.self_attn.q_proj.weight": (heads, 2 * WIDTH),
            f"{layer}.self_attn.k_proj.weight": (groups, 2 * WIDTH),
            f"{layer}.self_attn.v_proj.weight": (groups, 2 * WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, heads),
            f"{layer}.mlp.gate_proj.weight": (inner, WIDTH),
            f"{layer}.mlp.up_proj.weight": (inner, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, inner),
            f"{layer}.hidden_norm.weight": (WIDTH,),
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            "norm.weight": (WIDTH,),
            "lm_head.weight": (rows, WIDTH),
        }
        if self.embeddings:
            shapes["embed_tokens.weight"] = (VOCABULARY, WIDTH)
        if self.qk_norm:
            shapes |= {f"{layer}.self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
        if self.fc_norm:
            shapes |= {f"fc_norm.{i}.weight": (self.target_width,) for i in range(len(self.taps))}
        torch.manual_seed(1)
        found = {name: torch.randn(shape) * 0.15 + (len(shape) == 1) for name, shape in shapes.items()}
        if not self.full_vocabulary:
            kept = torch.randperm(VOCABULARY)[:DRAFT].sort().values
            found |= {"d2t": kept - torch.arange(DRAFT), "t2d": torch.zeros(VOCABULARY, dtype=torch.bool)}
            found["t2d"][kept] = True
        return found

    def settings(self) -> dict:
        """The keys that describe the layer."""
        return self.config.get("transformer_layer_config", self.config)


def safeailab(**changes) -> dict:
    """As yuhuili/EAGLE3-* have it: a Llama config of one layer with draft_vocab_size, no rope_theta, no taps."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
        "use_cache": True,
        "draft_vocab_size": DRAFT,
        **SIZES,
        **changes,
    }


def specforge(**changes) -> dict:
    """As SpecForge (v0.1 to v0.3) writes it for Qwen 3: sliding-window keys of the target's that say none."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 8,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "draft_vocab_size": DRAFT,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True},
        **SIZES,
        **changes,
    }


def deepspec(layers: int, outputs: list[int]) -> dict:
    """As DeepSpec writes it: the target's own config with what describes the head put over it."""
    return {
        "architectures": ["Qwen3Eagle3Model"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "draft_num_hidden_layers": 1,
        "dtype": "bfloat16",
        "head_dim": 16,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention"],
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_hidden_layers": 1,
        "num_target_layers": layers,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "sliding_window": None,
        "step_loss_decay": 0.8,
        "target_layer_ids": outputs,
        "target_model_name_or_path": "Qwen/Qwen3",
        "tie_word_embeddings": False,
        "ttt_length": 7,
        "use_cache": True,
        "use_sliding_window": False,
        **SIZES,
    }


def deepspec_head(layers: int, outputs: list[int], taps: tuple[int, ...]) -> PublicHead:
    """A head of DeepSpec's for a Qwen 3 of so many layers."""
    return PublicHead(
        deepspec(layers, outputs),
        taps,
        1e6,
        layer="layers.0",
        head_dim=16,
        embeddings=True,
        qk_norm=True,
        full_vocabulary=True,
        family="qwen3",
        layers=layers,
    )


def speculators(layer: dict, **changes) -> dict:
    """As the speculators library writes it."""
    return {
        "architectures": ["Eagle3DraftModel"],
        "auto_map": {"": "config.Eagle3SpeculatorConfig"},
        "draft_vocab_size": DRAFT,
        "dtype": "bfloat16",
        "eagle_aux_hidden_state_layer_ids": None,
        "embed_requires_grad": False,
        "has_no_defaults_at_init": False,
        "norm_before_fc": False,
        "norm_before_residual": True,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1}
            ],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "x"},
        },
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "transformer_layer_config": {"num_hidden_layers": 1, **SIZES, **layer},
        **changes,
    }


LLAMA_LAYER = {
    "attention_bias": False,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3_ROPE,
    "rope_theta": 500000.0,
}
# The default from June 2026; what equals Qwen3Config's own values is left out.
QWEN_LAYER = {
    "head_dim": 16,
    "layer_types": ["full_attention"],
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
}
ANGELSLIM = {
    **specforge(tie_word_embeddings=True, model_type="qwen3", head_dim=16),
    "architectures": ["Eagle3LlamaForCausalLM"],
}
ANGELSLIM.pop("eagle_config")

PUBLIC = {
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": PublicHead(safeailab(), (2, 4, 5), 1e4, pickle=True),
    "yuhuili/EAGLE3-Vicuna1.3-13B": PublicHead(safeailab(pad_token_id=0), (2, 4, 5), 1e4, pickle=True),
    "yuhuili/EAGLE3-DeepSeek-R1-Distill-LLaMA-8B": PublicHead(
        safeailab(rms_norm_eps=1e-6), (2, 4, 5), 1e4, head_dim=16, pickle=True
    ),
    "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B": PublicHead(
        safeailab(target_hidden_size=64), (2, 4, 5), 1e4, embeddings=True, pickle=True, target_width=64
    ),
    "wantsleep/granite-3.1-1b-a400m-EAGLE3": PublicHead(
        safeailab(num_key_value_heads=2), (2, 4, 5), 1e4, pickle=True, family="granitemoe"
    ),
    "lmsys/Qwen3-235B-A22B-EAGLE3": PublicHead(specforge(), (2, 4, 5), 1e6, family="qwen3_moe"),
    "lmsys/SGLang-EAGLE3-Llama-4": PublicHead(
        specforge(
            rope_theta=500000.0, rope_scaling=LLAMA3_ROPE, eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 4, 6]}
        ),
        (2, 5, 7),
        5e5,
    ),
    "lmsys/EAGLE3-gpt-oss-120b-bf16": PublicHead(
        specforge(head_dim=16, rope_theta=500000.0, eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}),
        (2, 4, 5),
        5e5,
        head_dim=16,
    ),
    "GavinLucky/SGLang-EAGLE3-Qwen3-0.6B-SpecForge": PublicHead(
        specforge(head_dim=16), (2, 4, 5), 1e6, head_dim=16, family="qwen3"
    ),
    "SpecForge v0.3, EAGLE-3.1": PublicHead(
        {**specforge(fc_norm=True, norm_output=True), "eagle_config": None}, (2, 4, 5), 1e6, fc_norm=True
    ),
    "AngelSlim/Qwen3-4B_eagle3": PublicHead(ANGELSLIM, (2, 4, 5), 1e4, head_dim=16, family="qwen3"),
    "RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3": PublicHead(
        speculators(LLAMA_LAYER), (2, 4, 5), 5e5, layer="layers.0", embeddings=True
    ),
    "RedHatAI/Qwen3-8B-speculator.eagle3": PublicHead(
        speculators(QWEN_LAYER, eagle_aux_hidden_state_layer_ids=[2, 4, 5]),
        (2, 4, 5),
        1e6,
        layer="layers.0",
        head_dim=16,
        embeddings=True,
        qk_norm=True,
        family="qwen3",
    ),
    "speculators 0.9, sliding window": PublicHead(
        speculators(
            {**QWEN_LAYER, "sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention"]},
            norm_before_residual=False,
            fc_norm=True,
            norm_output=True,
            eagle_aux_hidden_state_layer_ids=[1, 3, 5, 7],
        ),
        (1, 3, 5, 7),
        1e6,
        layer="layers.0",
        head_dim=16,
        embeddings=True,
        qk_norm=True,
        fc_norm=True,
        family="qwen3",
    ),
    "deepseek-ai/eagle3_qwen3_4b_ttt7": deepspec_head(36, [1, 9, 17, 25, 33], (2, 10, 18, 26, 34)),
    "deepseek-ai/eagle3_qwen3_8b_ttt7": deepspec_head(36, [1, 9, 17, 25, 33], (2, 10, 18, 26, 34)),
    "deepseek-ai/eagle3_qwen3_14b_ttt7": deepspec_head(40, [1, 10, 19, 28, 37], (2, 11, 20, 29, 38)),
}
