"""A Llama or Qwen 2 target as a GGUF file of architecture llama, with the weights that `transformers` has.

    write_target(model, "OUT.gguf", tokenizer_from="T.gguf")

For comparisons in which llama.cpp must have the same numbers as this project, and for Qwen 2: llama.cpp's own graph of
it does not expose layer inputs, which drafting by EAGLE-3 needs, while the llama graph does and takes its biases.
"""

from typing import Any

from torch import Tensor

from eagle.checkpoints.to_gguf import FILE_TYPES, add_sizes, copy_tokenizer, finish, interleave

FAMILIES = ("llama", "qwen2")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors_of(model: Any) -> dict[str, Tensor]:
    """The weights under llama.cpp's names, rows of queries and keys interleaved."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = {
        "token_embd.weight": model.get_input_embeddings().weight,
        "output.weight": model.get_output_embeddings().weight,
        "output_norm.weight": model.model.norm.weight,
    }
    for number, layer in enumerate(model.model.layers):
        for name, parameter in layer.named_parameters():
            stem, _, kind = name.rpartition(".")
            rows = heads.get(stem.rpartition(".")[2])
            tensor = interleave(parameter.data, rows) if rows else parameter.data
            found[f"blk.{number}.{NAMES[stem]}.{kind}"] = tensor
    return found


def add_plain_tokenizer(writer: Any, size: int) -> None:
    """A tokenizer that only counts: prompts are token ids."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["< 0"])


def write_target(model: Any, path: str, tokenizer_from: str | None = None, dtype: str = "float32") -> None:
    """Write the model. Raises ValueError for another architecture, or a scaled rope."""
    import gguf

    config = model.config
    if config.model_type not in FAMILIES or config.rope_parameters.get("rope_type", "default") != "default":
        raise ValueError(
            f"{config.model_type} with rope {config.rope_parameters}: only {', '.join(FAMILIES)}, unscaled"
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(str(getattr(config, "_name_or_path", "") or "target"))
    writer.add_file_type(FILE_TYPES[dtype])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    add_sizes(writer, config, config.num_hidden_layers, head_dim, float(config.rope_parameters["rope_theta"]))
    if tokenizer_from is None:
        add_plain_tokenizer(writer, config.vocab_size)
    else:
        copy_tokenizer(writer, gguf.GGUFReader(tokenizer_from))
    finish(writer, tensors_of(model), dtype)
