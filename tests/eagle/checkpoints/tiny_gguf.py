"""A two-layer Llama as a GGUF file inside wheels, as the package index would serve them, and its row of the table."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from eagle.checkpoints.known import Hub, KnownPair, Registry, Wheel

TOKENS = [*sorted(ByteLevel.alphabet()), "ĊĊ", "Ġt", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
MERGES = ["Ċ Ċ", "Ġ t"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    ).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF keeps the two halves of every query and key head interleaved."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny 2L 32W Mix1")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([1] * (len(TOKENS) - 3) + [3] * 3)
    writer.add_bos_token_id(TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_unk_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        inside = name.startswith("model.layers.")
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if inside and rest.startswith(("self_attn.q", "self_attn.k")):
            tensor = interleaved(tensor, heads[rest[10]])
        stem = NAMES[(rest if inside else name).removesuffix(".weight")]
        full = f"blk.{layer}.{stem}.weight" if inside else f"{stem}.weight"
        writer.add_tensor(full, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    """A wheel with one data file; whoever imports its package gets an error."""
    path, info = folder / f"{package}-1.0-py3-none-any.whl", f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{package}/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_index(folder: Path, gguf_file: Path) -> KnownPair:
    """Two wheels with a half of the file each, and the row that describes them."""
    content = gguf_file.read_bytes()
    half = len(content) // 2
    wheels = []
    for k, piece in enumerate((content[:half], content[half:]), start=1):
        member = f"tiny_part{k}/data/part0{k}.bin"
        path = write_wheel(folder, f"tiny_part{k}", member, piece)
        wheels.append(Wheel(f"tiny-part{k}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), member))
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    sums = hashlib.sha256(content).hexdigest()
    registry = Registry(tuple(wheels), sums, len(content), size, ("<|im_end|>", "<|endoftext|>"))
    return KnownPair("Tiny-Instruct", "CC0", 60_000, registry, Hub("someone/tiny"))
