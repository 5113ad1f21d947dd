"""Targets that were really fetched: their tokenizer, what ends an answer, and that greedy text is language."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from eagle.checkpoints.known import KNOWN
from eagle.checkpoints.pairs import find_part

TEXT = "Let's see:\n\n1. 12 boxes of $3.50 each\n\n2. Grüße, 世界: 1,234  tabs\tand {braces}\n"
STOPS = {"smollm2-135m": [2], "qwen2.5-coder-0.5b": [151645, 151643], "qwen2.5-coder-1.5b": [151645, 151643]}
pytestmark = pytest.mark.real


@pytest.fixture(params=[name for name, row in KNOWN.items() if row.registry and row.registry.chat])
def target(request):
    place = find_part(request.param, "target")
    if place is None:
        pytest.skip(f"not fetched: python -m eagle.checkpoints.fetch {request.param}")
    return request.param, place


def test_tokenizer_and_stops(target):
    name, place = target
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert tokenizer.decode(tokenizer(TEXT, add_special_tokens=False)["input_ids"]) == TEXT
    assert tokenizer.tokenize("\n\n1. 12") == ["ĊĊ", "1", ".", "Ġ", "1", "2"]
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\nYou are ")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    generation = GenerationConfig.from_pretrained(place)
    stops = generation.eos_token_id
    assert (stops if isinstance(stops, list) else [stops]) == STOPS[name]
    assert generation.pad_token_id is not None


def test_greedy_text_is_language(target):
    _, place = target
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).eval()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
