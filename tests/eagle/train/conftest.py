"""A target small enough to train heads for in a test: 6 layers, 64 wide, 96 tokens, with a chat template."""

import json
import random
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eagle.train.config import TrainConfig
from eagle.train.demo.corpus import CHAT_TEMPLATE, SPECIAL_TOKENS

ROOT = Path(__file__).parents[3]  # where worker processes run
WORDS = [f"w{i}" for i in range(90)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL_TOKENS + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|pad|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[2:5]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory):
    """Directory of a tiny random Llama with sharpened logits."""
    path = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 8
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def no_state_of_accelerate():
    """It keeps one state per process, which transformers' Trainer and a run in another format leave behind."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """60 conversations of random words, in the messages form."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("data") / "train.jsonl"

    def sentence(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    rows = [
        {"messages": [{"role": "user", "content": sentence(3, 8)}, {"role": "assistant", "content": sentence(6, 16)}]}
        for _ in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(tiny_target, tiny_data):
    """TrainConfig of a short run; keyword arguments change it."""

    def build(output, **changes) -> TrainConfig:
        return TrainConfig(
            **{
                "target": str(tiny_target),
                "data": [str(tiny_data)],
                "output": str(output),
                "unroll": 3,
                "batch_tokens": 160,
                "steps": 15,
                "precision": "float32",
                "lr": 3e-3,
                "warmup": 5,
                "log_every": 1,
                "eval_every": 100,
                "save_every": 100,
                "eval_examples": 4,
                "eval_prompts": 0,
                "held_out_share": 0.1,
                "feature_cache": "off",
                **changes,
            }
        )

    return build


def read_log(output) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(output) -> list[float]:
    return [row["loss"] for row in read_log(output) if "loss" in row]
