"""What must hold of a head's tensors, of its vocabulary map, and between a head and its target.

Every failure is a ValueError that names the tensor or key, what was expected and what was found.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eagle.nn.head import HeadConfig

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
VOCABULARY_MAP = ("d2t", "t2d")


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Names, shapes and kinds of `tensors` are those of `expected`; everything is finite."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        raise ValueError(
            f"tensors: missing {missing or 'none'}, unexpected {unexpected or 'none'}; "
            "the config.json and the weights do not describe the same head"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"tensor {name}: expected shape {list(expected[name].shape)}, found {list(tensor.shape)}")
        if name not in VOCABULARY_MAP and tensor.dtype not in FLOATS:
            raise ValueError(f"tensor {name}: expected float32, bfloat16 or float16, found {tensor.dtype}")
    check_finite(tensors)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """ValueError for NaN or infinite values, which a cast to a smaller dtype makes as well."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in VOCABULARY_MAP and not tensor.isfinite().all():
            remedy = "; load it as float32 or bfloat16" if tensor.dtype == torch.float16 else ""
            raise ValueError(f"tensor {name}: holds NaN or infinite values in {tensor.dtype}{remedy}")


def check_vocabulary_map(d2t: Tensor, t2d: Tensor, config: HeadConfig) -> None:
    """d2t are offsets: draft token i stands for target token i + d2t[i]; t2d marks exactly those target tokens."""
    for name, tensor in (("d2t", d2t), ("t2d", t2d)):
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"tensor {name}: expected integers, found {tensor.dtype}")
    ids, size = d2t.long() + torch.arange(len(d2t)), config.vocab_size
    if ids.numel() and not (ids.min() >= 0 and ids.max() < size):
        bad = int(((ids < 0) | (ids >= size)).nonzero()[0])
        raise ValueError(
            f"tensor d2t: draft token {bad} maps to target token {int(ids[bad])}, outside 0..{size - 1}; "
            "d2t holds offsets (target id = draft id + d2t), not ids"
        )
    marked = int(t2d.bool().sum())
    if marked != config.draft_vocab_size:
        raise ValueError(f"tensor t2d: sum is {marked}; expected draft_vocab_size = {config.draft_vocab_size}")
    if len(ids.unique()) != len(ids) or not t2d.bool()[ids].all():
        raise ValueError(
            "tensors d2t and t2d disagree: d2t must map the draft tokens one to one onto the tokens t2d marks"
        )


def drop_identity_map(tensors: dict[str, Tensor], config: HeadConfig) -> dict[str, Tensor]:
    """With equal vocabularies a map may be present, and must be the identity; the head has no place for it."""
    if config.has_vocabulary_map:
        return tensors
    if any(name in tensors for name in VOCABULARY_MAP):
        d2t = tensors.get("d2t", torch.zeros(config.vocab_size, dtype=torch.int64))
        t2d = tensors.get("t2d", torch.ones(config.vocab_size, dtype=torch.bool))
        if d2t.shape != (config.vocab_size,) or t2d.shape != (config.vocab_size,) or d2t.any() or not t2d.all():
            raise ValueError(
                f"tensors d2t / t2d: draft_vocab_size = vocab_size = {config.vocab_size}, so they must be absent, or "
                "d2t all zero and t2d all true"
            )
    return {name: tensor for name, tensor in tensors.items() if name not in VOCABULARY_MAP}


def check_target(config: HeadConfig, target_config) -> None:
    """The head was made for this target: hidden size, vocabulary, taps inside its layers."""
    target = target_config.get_text_config() if hasattr(target_config, "get_text_config") else target_config
    if config.target_hidden_size != target.hidden_size:
        raise ValueError(
            f"hidden size: the head reads features {config.target_hidden_size} wide, the target's are "
            f"{target.hidden_size}; this head belongs to another target"
        )
    if config.vocab_size != target.vocab_size:
        raise ValueError(
            f"vocab_size: the head's target vocabulary has {config.vocab_size} tokens, the target {target.vocab_size}; "
            "this head belongs to another target"
        )
    bad = [tap for tap in config.taps if not 0 <= tap < target.num_hidden_layers]
    if bad or len(config.taps) != 3:
        raise ValueError(
            f"eagle_aux_hidden_state_layer_ids: taps {list(config.taps)} (layer inputs); expected three layers in "
            f"0..{target.num_hidden_layers - 1}"
        )
    if config.hidden_size != target.hidden_size and not config.own_embeddings:
        raise ValueError(
            f"tensor embed_tokens.weight is missing: the head is {config.hidden_size} wide and cannot use the target's "
            f"embeddings, which are {target.hidden_size} wide"
        )
