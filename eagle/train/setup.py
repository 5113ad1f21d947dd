"""What a run needs before its first step: target, tokenizer, examples, head."""

from collections import Counter

import torch
from torch import Tensor

from eagle.checkpoints.load import load_head
from eagle.checkpoints.pretrained import read_config, read_model, read_tokenizer
from eagle.nn.head import DEFAULT_ROPE, Eagle3Head, HeadConfig, default_taps
from eagle.nn.precision import DTYPES
from eagle.nn.target import check_supported
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Example, load_examples
from eagle.train.distributed import shard_layers


def load_pretrained(path: str, dtype: torch.dtype, device_map=None, **hub):
    """A target model in eval mode and its tokenizer; `hub`: where files are, as in `transformers`.

    Raises ValueError naming the target where it cannot be loaded or its architecture is not supported.
    """
    check_supported(read_config(path, **hub))
    return read_model(path, dtype=dtype, device_map=device_map, **hub), read_tokenizer(path, **hub)


def load_target(config: TrainConfig, device: torch.device):
    """The frozen target on `device`, in bfloat16 where training is, and its tokenizer."""
    target, tokenizer = load_pretrained(config.target, DTYPES[config.precision])
    if config.shard_target:
        shard_layers(target, device)
    return target.to(device), tokenizer


def split_examples(config: TrainConfig, tokenizer, context: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, cut at the target's context. Without held-out files, every k-th is held out.

    Raises ValueError where nothing would be left to train on.
    """
    longest = min(config.max_length, context)
    train = load_examples(tokenizer, config.data, longest, config.chat_template_kwargs)
    if config.held_out:
        return train, load_examples(tokenizer, config.held_out, longest, config.chat_template_kwargs)[
            : config.eval_examples
        ]
    if len(train) < 2:
        raise ValueError(
            f"training data {config.data}: one conversation, and every {round(1 / config.held_out_share)}th is held "
            "out; give more conversations, or --held-out F"
        )
    every = max(2, round(1 / config.held_out_share))
    held_out = train[::every]
    return [example for i, example in enumerate(train) if i % every], held_out[: config.eval_examples]


def frequent_tokens(examples: list[Example], size: int, vocab_size: int) -> Tensor:
    """The `size` most frequent answer tokens, ascending Int64[size]; ties and unseen tokens by id."""
    counts = Counter(token for e in examples for token, marked in zip(e.ids, e.answer, strict=True) if marked)
    ranked = sorted(range(vocab_size), key=lambda token: (-counts[token], token))
    return torch.tensor(sorted(ranked[:size]))


def head_config(config: TrainConfig, target_config) -> HeadConfig:
    """The shape of a new head. Raises ValueError for taps or a draft vocabulary outside the target's."""
    heads, layers, vocabulary = (
        target_config.num_attention_heads,
        target_config.num_hidden_layers,
        target_config.vocab_size,
    )
    draft = config.draft_vocab_size or vocabulary
    if draft > vocabulary:
        raise ValueError(f"draft_vocab_size is {draft}; expected 1 .. {vocabulary}, the target's vocabulary")
    taps = tuple(config.taps or default_taps(layers))
    bad = [tap for tap in taps if not 0 <= tap < layers]
    if bad:
        raise ValueError(f"taps {bad}: outside the target's layers 0 .. {layers - 1}")
    return HeadConfig(
        hidden_size=target_config.hidden_size,
        intermediate_size=config.intermediate_size or target_config.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=target_config.num_key_value_heads,
        head_dim=getattr(target_config, "head_dim", None) or target_config.hidden_size // heads,
        vocab_size=vocabulary,
        draft_vocab_size=draft,
        taps=taps,
        target_hidden_size=target_config.hidden_size,
        max_position_embeddings=target_config.max_position_embeddings,
        rms_norm_eps=target_config.rms_norm_eps,
        qk_norm=config.qk_norm,
        num_hidden_layers=config.head_layers,
        sliding_windows=None if config.sliding_window is None else (config.sliding_window,) * config.head_layers,
        rope_parameters=dict(DEFAULT_ROPE),  # not the target's: every engine assumes this of a head
    )


@torch.no_grad()
def fresh_head(config: TrainConfig, target, examples: list[Example]) -> Eagle3Head:
    """A new float32 head; its norm and lm_head start as the target's, the two residual branches at half scale."""
    shape = head_config(config, target.config)
    generator_state = torch.get_rng_state()
    torch.manual_seed(config.seed)
    head = Eagle3Head(shape)
    torch.set_rng_state(generator_state)
    rows = target.get_output_embeddings().weight.float().cpu()
    if shape.has_vocabulary_map:
        kept = frequent_tokens(examples, shape.draft_vocab_size, shape.vocab_size)
        vocabulary_map = dict(head.named_buffers())
        vocabulary_map["d2t"].copy_(kept - torch.arange(len(kept)))
        vocabulary_map["t2d"][kept] = True
        rows = rows[kept]
    head.lm_head.weight.copy_(rows)
    head.norm.weight.copy_(target.model.norm.weight)
    for layer in head.all_layers():
        layer.self_attn.o_proj.weight *= 0.5
        layer.mlp.down_proj.weight *= 0.5
    return head


def build_head(config: TrainConfig, target, examples: list[Example]) -> Eagle3Head:
    """The head to train, float32, on the target's device, reading the target's embeddings."""
    if config.init_from:
        head = load_head(config.init_from, target.config, dtype=torch.float32)
    else:
        head = fresh_head(config, target, examples)
    head.bind(target)
    return head.to(target.device)
