"""What must hold of a head's tensors, of its vocabulary map, and between a head and its target.

Every failure is a ValueError that names the tensor or key, what was expected and what was found.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from eagle.nn.head import HeadConfig

SAMPLED_ROWS, LIKE = 256, 0.5  # of two embedding tables: rows compared, and their mean cosine from where they belong
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
VOCABULARY_MAP = ("d2t", "t2d")


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Names, shapes and kinds of `tensors` are those of `expected`; everything is finite."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if "d2t" in missing:
        raise ValueError(
            f"tensor d2t is missing: the head's vocabulary has {len(expected['d2t'])} of the target's "
            f"{len(expected['t2d'])} tokens, and nothing says which (missing {missing}); the first ids are not "
            "the draft vocabulary; get the map from the head's trainer"
        )
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


def check_tap_count(config: HeadConfig, tensors: Mapping[str, Tensor]) -> None:
    """ValueError where fc reads another number of taps than the config names."""
    shape, width = tuple(tensors["fc.weight"].shape) if "fc.weight" in tensors else (), config.target_hidden_size
    if len(shape) == 2 and shape[0] == config.hidden_size and shape[1] != len(config.taps) * width:
        raise ValueError(
            f"tensor fc.weight: expected shape {[config.hidden_size, len(config.taps) * width]} for the taps "
            f"{list(config.taps)}, found {list(shape)}; name the {shape[1] / width:g} layers that it reads in "
            "config.json or with taps="
        )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """ValueError for NaN or infinite values, which a cast to a smaller dtype makes as well."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in VOCABULARY_MAP and not tensor.isfinite().all():
            remedy = "; load it as float32 or bfloat16" if tensor.dtype == torch.float16 else ""
            raise ValueError(f"tensor {name}: holds NaN or infinite values in {tensor.dtype}{remedy}")


def read_vocabulary_map(d2t: Tensor, t2d: Tensor, config: HeadConfig) -> Tensor:
    """The offsets Int64[Vd], checked: draft token i stands for target token i + offset, t2d marks exactly those.

    A d2t that holds target ids instead (llama.cpp's convention) is recognised by t2d, and turned into offsets.
    """
    for name, tensor in (("d2t", d2t), ("t2d", t2d)):
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"tensor {name}: expected integers, found {tensor.dtype}")
    if not d2t.any():
        raise ValueError(
            f"tensor d2t is all zeros for {config.draft_vocab_size} of {config.vocab_size} tokens: that would make the "
            "first ids the draft vocabulary, which an unfilled map does; get the map from the head's trainer"
        )
    d2t, places = d2t.long(), torch.arange(len(d2t))
    marked = int(t2d.bool().sum())
    if marked != config.draft_vocab_size:
        raise ValueError(f"tensor t2d: sum is {marked}; expected draft_vocab_size = {config.draft_vocab_size}")
    if stands_for(d2t + places, t2d):
        return d2t
    if stands_for(d2t, t2d):
        warnings.warn(
            "tensor d2t holds target ids where checkpoints hold offsets; t2d marks exactly these ids, so they are used",
            stacklevel=2,
        )
        return d2t - places
    ids = d2t + places
    bad = ((ids < 0) | (ids >= config.vocab_size)).nonzero()
    if len(bad):
        raise ValueError(
            f"tensor d2t: draft token {int(bad[0])} maps to target token {int(ids[bad[0]])}, outside "
            f"0..{config.vocab_size - 1}; d2t holds offsets (target id = draft id + d2t), not ids"
        )
    raise ValueError("tensors d2t and t2d disagree: d2t must map the draft tokens one to one onto the tokens t2d marks")


def stands_for(ids: Tensor, t2d: Tensor) -> bool:
    """Whether ids Int64[Vd] are, in some order, the tokens that t2d [V] marks."""
    return torch.equal(ids.sort().values, t2d.bool().nonzero()[:, 0])


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
    if bad or not config.taps:
        raise ValueError(
            f"eagle_aux_hidden_state_layer_ids: taps {list(config.taps)} (layer inputs); expected layers in "
            f"0..{target.num_hidden_layers - 1}"
        )
    if config.hidden_size != target.hidden_size and not config.own_embeddings:
        raise ValueError(
            f"tensor embed_tokens.weight is missing: the head is {config.hidden_size} wide and cannot use the target's "
            f"embeddings, which are {target.hidden_size} wide"
        )
    if config.hidden_size != target.hidden_size and not config.own_lm_head:
        raise ValueError(
            f"tensor lm_head.weight is missing: the head is {config.hidden_size} wide and cannot use the target's "
            f"output layer, which reads {target.hidden_size}"
        )
    reach = getattr(target, "max_position_embeddings", None)
    if reach is not None and config.max_position_embeddings < reach:
        warnings.warn(
            f"the head's config.json states max_position_embeddings {config.max_position_embeddings}, the target's "
            f"{reach}; its rotary positions go on beyond that, where it may accept less",
            stacklevel=2,
        )


def check_embeddings(own: Tensor, target: Tensor) -> None:
    """Warn where a head's own embeddings [V, D] are nothing like the target's [V, D], which they started as.

    Another model of the same shape has other embeddings. Of other widths nothing can be said.
    """
    if own.shape != target.shape or own.is_meta or target.is_meta or not target.is_floating_point():
        return
    rows = torch.linspace(0, len(own) - 1, min(len(own), SAMPLED_ROWS)).long()
    ours, theirs = (table.detach()[rows.to(table.device)].float().cpu() for table in (own, target))
    likeness = float(torch.cosine_similarity(ours, theirs, dim=-1).mean())
    if likeness < LIKE:
        warnings.warn(
            f"the head's own embed_tokens are not this target's (mean cosine {likeness:.2f} over {len(rows)} tokens; "
            f"expected above {LIKE}): the head was probably made for another model of the same shape, and will draft "
            "tokens that are rejected",
            stacklevel=2,
        )
