"""Scoring a tree in one forward equals reading each path token by token, in every supported family."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle.nn.target import CachedLM
from tests.eagle.tiny import FAMILIES, LAYERS, tiny_target, with_prompts

#            0          the tree of eagle/nn/target.py
#          1   2
#         3 4   5
#               6
PARENTS = [-1, 0, 0, 1, 1, 2, 5]
DEPTHS = [0, 1, 1, 2, 2, 2, 3]
TREE = [5, 11, 12, 13, 14, 15, 16]
TAPS = (2, 4, 5)
MASK = [
    "1......",
    "11.....",
    "1.1....",
    "11.1...",
    "11..1..",
    "1.1..1.",
    "1.1..11",
]


def ancestors() -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in MASK])[None]


def path_to(node: int) -> list[int]:
    return [*(path_to(PARENTS[node]) if PARENTS[node] >= 0 else []), node]


# Every family as it is published, and the one whose small members tie their embeddings (Llama 3.2) tied as well.
TARGETS = {**{family: {} for family in FAMILIES}, "llama tied": {"tie_word_embeddings": True}}


def loaded(name: str, prompt: list[int]) -> CachedLM:
    model = tiny_target(name.split()[0], **TARGETS[name])
    assert model.config.num_key_value_heads < model.config.num_attention_heads  # grouped queries
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (name in {"qwen2", "qwen3", "gemma3_text", "smollm3", "llama tied"})
    return with_prompts(CachedLM(model, TAPS), [prompt], scratch=len(TREE) + 2)


@torch.no_grad()
def sequential(model, tokens: list[int]):
    """Logits and tapped layer inputs after the last token, by a plain forward without any cache."""
    out = model(torch.tensor([tokens]), output_hidden_states=True)
    return out.logits[0, -1], torch.cat([out.hidden_states[tap][0, -1] for tap in TAPS])


@torch.no_grad()
@pytest.mark.parametrize("family", TARGETS)
def test_tree_scores_equal_token_by_token(family):
    prompt = [3, 1, 4, 1, 9, 2]
    lm = loaded(family, prompt)
    padded = torch.nn.functional.pad(ancestors(), (0, 2))
    scores = lm.score(torch.tensor([TREE]), torch.tensor([DEPTHS]), padded)
    for node in range(len(TREE)):
        logits, features = sequential(lm.model, prompt + [TREE[i] for i in path_to(node)])
        assert torch.allclose(scores.logits[0, node], logits, atol=1e-4)
        assert torch.allclose(scores.aux_states[0, node], features, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", TARGETS)
def test_committed_path_is_as_if_read_in_order(family):
    prompt, node = [3, 1, 4, 1, 9, 2], 6
    lm = loaded(family, prompt)
    lm.score(torch.tensor([TREE]), torch.tensor([DEPTHS]), torch.nn.functional.pad(ancestors(), (0, 2)))
    path = path_to(node)
    lm.commit(torch.tensor([path + [0, 0, 0]]), torch.tensor([len(path)]))
    lm.cache.set_held([len(prompt) + len(path)])
    one = torch.ones(1, 1, lm.cache.scratch, dtype=torch.bool) & (torch.arange(9) == 0)
    scores = lm.score(torch.tensor([[7]]), torch.tensor([[0]]), one)
    logits, _ = sequential(lm.model, prompt + [TREE[i] for i in path] + [7])
    assert torch.allclose(scores.logits[0, 0], logits, atol=1e-4)


@torch.no_grad()
def test_rows_of_different_lengths_do_not_see_each_other():
    prompts = [[3, 1, 4, 1, 9, 2], [8, 7], [5, 6, 7, 8]]
    model = tiny_target()
    lm = with_prompts(CachedLM(model), prompts, scratch=1, capacity=20, slack=4)
    more = [[10, 11, 12], [13], [14, 15]]
    scores = lm.extend(torch.tensor([row + [0] * (3 - len(row)) for row in more]), torch.tensor([3, 1, 2]))
    for row, (prompt, rest) in enumerate(zip(prompts, more)):
        logits = model(torch.tensor([prompt + rest])).logits[0, -1]
        assert torch.allclose(scores.logits[row, 0], logits, atol=1e-4)


def test_unknown_architectures_and_taps_are_refused():
    with pytest.raises(ValueError, match="gpt2.*known: .*llama, "):
        CachedLM(type("M", (), {"config": type("C", (), {"model_type": "gpt2"})})())
    with pytest.raises(ValueError, match=rf"\[99\].*0 .. {LAYERS - 1}"):
        CachedLM(tiny_target(), taps=(2, 4, 99))


WINDOW = {"sliding_window": 4, "max_window_layers": 2}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_a_window_that_is_switched_off_is_none(family):
    """As published: the config names a window and does not use it."""
    CachedLM(tiny_target(family, use_sliding_window=False, **WINDOW))


def test_the_remedy_for_a_window(tmp_path):
    tiny_target("mistral", sliding_window=4).save_pretrained(tmp_path)
    CachedLM(AutoModelForCausalLM.from_pretrained(tmp_path, sliding_window=None))
