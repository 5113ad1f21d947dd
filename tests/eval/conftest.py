"""A tiny pair on disk, for the commands that load one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle.checkpoints.load import save_head
from eagle.nn.head import Eagle3Head, HeadConfig, default_taps
from eagle.train.demo.corpus import conversation, train_tokenizer


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A tiny random Llama and head, on disk in the official layouts."""
    folder = tmp_path_factory.mktemp("pair")
    text = [conversation(f"How many apples are {i} and {i + 1}?", f"#### {2 * i + 1}") for i in range(30)]
    tokenizer = train_tokenizer(text, 300)
    tokenizer.save_pretrained(folder / "target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "target")
    save_head(
        Eagle3Head(HeadConfig(32, 64, 4, 2, 8, len(tokenizer), len(tokenizer), default_taps(8), 32)), folder / "head"
    )
    return folder


@pytest.fixture
def pair_flags(pair):
    """The flags that name the tiny pair."""
    return ["--base-model-path", str(pair / "target"), "--ea-model-path", str(pair / "head"), "--dtype", "float32"]


@pytest.fixture
def threads():
    """Commands that set the number of threads leave the other tests theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
