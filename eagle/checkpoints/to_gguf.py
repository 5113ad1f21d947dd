"""A head as a GGUF file for llama.cpp's draft type `eagle3` (architecture "eagle3").

llama.cpp's conventions, where they differ from a checkpoint's:
    eagle3.target_layers  the decoder layers whose *inputs* are read; older builds call the key eagle3.extract_layers:
                          both are written
    d2t                   int64, *absolute* target ids (checkpoints hold offsets)
    attn_q, attn_k        rows interleaved per head, 0, h, 1, h+1, ...: neighbours are rotated together (RoPE type
                          NORM), in checkpoints the two halves
    rope_freqs            what each rotary frequency is divided by, for llama3 and linear scaling
    tokenizer.*           copied from the target's own GGUF file
Embeddings and output layer may be left out, as in a checkpoint: the target's are used.

What llama.cpp's graph has no place for is refused: other than three taps, several layers, norms of queries and keys,
biases, sliding windows, fc_norm, norm_output, other rope types.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle.nn.head import DEFAULT_ROPE, Eagle3Head, HeadConfig

NAMES = {  # checkpoint -> GGUF, without ".weight"
    "fc": "fc",
    "midlayer.input_layernorm": "blk.0.attn_norm",
    "midlayer.hidden_norm": "blk.0.attn_norm_2",
    "midlayer.self_attn.q_proj": "blk.0.attn_q",
    "midlayer.self_attn.k_proj": "blk.0.attn_k",
    "midlayer.self_attn.v_proj": "blk.0.attn_v",
    "midlayer.self_attn.o_proj": "blk.0.attn_output",
    "midlayer.post_attention_layernorm": "blk.0.ffn_norm",
    "midlayer.mlp.gate_proj": "blk.0.ffn_gate",
    "midlayer.mlp.up_proj": "blk.0.ffn_up",
    "midlayer.mlp.down_proj": "blk.0.ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
    "embed_tokens": "token_embd",
    "input_norm": "enc.output_norm",
}
FILE_TYPES = {"bfloat16": 32, "float16": 1, "float32": 0, "q8_0": 7}  # GGUF's general.file_type
QUANTIZATION = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "q8_0": "Q8_0"}
SCALED_ROPES = ("llama3", "linear")
TAPS = 3


def check_expressible(config: HeadConfig) -> None:
    """ValueError naming what llama.cpp's eagle3 graph has no place for."""
    rope = (config.rope_parameters or DEFAULT_ROPE).get("rope_type", "default")
    without_place = {
        f"{len(config.taps)} taps (it reads {TAPS})": len(config.taps) != TAPS,
        f"{config.num_hidden_layers} layers": config.num_hidden_layers != 1,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        "q_norm and k_norm": config.qk_norm,
        "biases": config.qkv_bias or config.o_bias or config.mlp_bias,
        "a sliding window": config.sliding_windows is not None and any(config.sliding_windows),
        f"rope type {rope!r}": rope not in ("default", *SCALED_ROPES),
    }
    found = [what for what, present in without_place.items() if present]
    if found:
        raise ValueError(
            f"this head has {', '.join(found)}, which llama.cpp's eagle3 graph has no place for; export it as "
            "speculators or safeailab"
        )


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Each head's rows 0 .. 2h-1 of [heads * 2h, in], reordered to 0, h, 1, h+1, ..."""
    size = rows.shape[0] // heads
    order = torch.stack([torch.arange(size // 2), torch.arange(size // 2) + size // 2], dim=1).flatten()
    return rows.unflatten(0, (heads, size))[:, order].flatten(0, 1)


def rope_divisors(head: Eagle3Head) -> Tensor | None:
    """Float32[E / 2]: what llama.cpp divides each plain frequency by; None where nothing is scaled."""
    rope: dict[str, Any] = head.config.rope_parameters or dict(DEFAULT_ROPE)
    if rope.get("rope_type", "default") == "default":
        return None
    size = head.config.head_dim
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / head.rotary.inv_freq.double()).float()


def gguf_tensors(head: Eagle3Head) -> dict[str, Tensor]:
    """The head's weights under llama.cpp's names and in its conventions."""
    heads = {"q_proj": head.config.num_attention_heads, "k_proj": head.config.num_key_value_heads}
    found: dict[str, Tensor] = {}
    for name, parameter in head.named_parameters():
        stem, tensor = name.removesuffix(".weight"), parameter.detach()
        kind = stem.rpartition(".")[2]
        found[f"{NAMES[stem]}.weight"] = interleave(tensor, heads[kind]) if kind in heads else tensor
    support, divisors = head.support(), rope_divisors(head)
    if support is not None:
        found["d2t"] = support
    if divisors is not None:
        found["rope_freqs.weight"] = divisors
    return found


def copy_tokenizer(writer: Any, reader: Any) -> None:
    """The `tokenizer.*` entries of a GGUF file, as they are."""
    import gguf

    for name, field in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        kind = field.types
        if kind[0] == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(name, field.contents(), kind[0], sub_type=kind[-1])
        else:
            writer.add_key_value(name, field.contents(), kind[0])


def read_target(path: str | Path, config: HeadConfig) -> Any:
    """A reader of the target's GGUF file. ValueError where it is none, or not of the head's target vocabulary."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"--target-gguf {str(path)!r}: not a GGUF file with a tokenizer ({type(error).__name__}); the head's own "
            "file takes its tokenizer from it"
        ) from error
    if tokens != config.vocab_size:
        raise ValueError(
            f"--target-gguf {str(path)!r}: {tokens} tokens, and the head's target has {config.vocab_size}; it is "
            "another model's"
        )
    return reader


def add_sizes(writer: Any, config: Any, layers: int, head_dim: int, theta: float) -> None:
    """Sizes and rope of a head or a target, as metadata."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_settings(writer: Any, config: HeadConfig, name: str) -> None:
    """The head's sizes, rope and conventions, as metadata."""
    rope: dict[str, Any] = config.rope_parameters or dict(DEFAULT_ROPE)
    writer.add_name(name)
    add_sizes(writer, config, 1, config.head_dim, float(rope["rope_theta"]))
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for key in ("target_layers", "extract_layers"):
        writer.add_array(f"eagle3.{key}", list(config.taps))
    writer.add_uint32("eagle3.target_hidden_size", config.target_hidden_size)
    writer.add_bool("eagle3.norm_before_residual", config.norm_before_residual)
    writer.add_bool("eagle3.norm_before_fc", config.norm_before_fc)


def add_tensor(writer: Any, name: str, tensor: Tensor, quantization: str) -> None:
    """Matrices in the given type, vectors in float32, the vocabulary map in int64."""
    import gguf

    if not tensor.is_floating_point():
        writer.add_tensor(name, tensor.cpu().numpy(), raw_dtype=gguf.GGMLQuantizationType.I64)
        return
    data = tensor.detach().float().cpu().numpy()
    if data.ndim == 1:
        writer.add_tensor(name, data)
        return
    kind = gguf.GGMLQuantizationType[quantization]
    writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)


def finish(writer: Any, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Add the tensors, write the file and close it. `dtype`: of the matrices."""
    for name, tensor in tensors.items():
        add_tensor(writer, name, tensor, QUANTIZATION[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(head: Eagle3Head, path: str | Path, target_gguf: str | Path, dtype: str = "bfloat16") -> None:
    """Write the head to `path`, with the tokenizer of the target's GGUF file.

    Raises ValueError for a head that llama.cpp cannot compute, another target's file, an unknown dtype.
    """
    import gguf

    if dtype not in FILE_TYPES:
        raise ValueError(f"dtype {dtype!r} is not known to the GGUF export; known: {', '.join(FILE_TYPES)}")
    check_expressible(head.config)
    reader = read_target(target_gguf, head.config)
    writer = gguf.GGUFWriter(path, "eagle3")
    writer.add_file_type(FILE_TYPES[dtype])
    add_settings(writer, head.config, f"EAGLE-3 head for {general_name(reader)}")
    copy_tokenizer(writer, reader)
    finish(writer, gguf_tensors(head), dtype)


def general_name(reader: Any) -> str:
    """What the target's file calls its model."""
    field = reader.fields.get("general.name")
    return str(field.contents()) if field is not None else "an unnamed model"
