"""Targets with sliding windows, chunks, sinks and constants: a tree's scores are those of reading each path in order.

Windows and chunks hold 4 tokens here, so that prompts, committed tokens and the drafted paths all go past them.
"""

import pytest
import torch

from eagle.nn.target import CachedLM, check_supported
from eagle.nn.windows import Reach, masks, reach_of, tree_distances
from tests.eagle.tiny import tiny_target

#            0          the tree of eagle/nn/target.py, one path longer than a window
#          1   2
#         3 4   5
#               6
#               7
PARENTS = [-1, 0, 0, 1, 1, 2, 5, 6]
TREE = [5, 11, 12, 13, 14, 15, 16, 17]
TAPS = (2, 4, 5)
PROMPTS = [[3, 1, 4, 1, 9, 2, 6, 5, 3, 5], [8, 7, 9]]
TARGETS = {
    "gemma3_text": {},
    "gpt_oss": {"attention": "grouped"},
    "gpt_oss eager": {"attention": "eager"},
    "llama4_text": {},
    "llama4_text grouped": {"attention": "grouped"},
    "phi3": {},
    "phi3 without a window": {"sliding_window": None},
    "mistral": {"sliding_window": 4},
    "mixtral": {"sliding_window": 4},
    "qwen3_moe": {"sliding_window": 4, "use_sliding_window": True},
    "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 3},
    "smollm3": {},
    "smollm3 with windows": {"sliding_window": 4, "use_sliding_window": True, "no_rope_layer_interval": 2},
    "olmo2": {},
    "granite": {},
    "granitemoe": {},
}


def path_to(node: int) -> list[int]:
    return [*(path_to(PARENTS[node]) if PARENTS[node] >= 0 else []), node]


def ancestors() -> torch.Tensor:
    rows = [[place in path_to(node) for place in range(len(TREE))] for node in range(len(TREE))]
    return torch.tensor(rows)[None]


def model_of(name: str):
    changes = dict(TARGETS[name])
    attention = changes.pop("attention", None)
    model = tiny_target(name.split()[0], **changes)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def in_order(model, tokens: list[int]):
    """Logits and tapped layer inputs after the last token, by a plain forward of the stock model without a cache."""
    out = model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    return out.logits[0, -1], torch.cat([out.hidden_states[tap][0, -1] for tap in TAPS])


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to float32 rounding: 1e-5 of the largest value, 4e-5 where experts add up (granitemoe's on AVX2)."""
    assert (found - expected).abs().max() <= 4e-5 * expected.abs().max()


def loaded(name: str) -> CachedLM:
    """Both prompts read, the first in two parts."""
    lm = CachedLM(model_of(name), TAPS)
    lm.cache.reserve(2, len(TREE) + 2, 40, 9)
    lm.read_prompt(0, PROMPTS[0][:6])
    lm.read_prompt(0, PROMPTS[0], held=6)
    lm.read_prompt(1, PROMPTS[1])
    lm.cache.use(2)
    return lm


def score(lm: CachedLM):
    depths = torch.tensor([[len(path_to(node)) - 1 for node in range(len(TREE))]])
    tree = torch.tensor([TREE])
    return lm.score_tree(tree.expand(2, -1), depths.expand(2, -1), ancestors().expand(2, -1, -1))


@torch.no_grad()
@pytest.mark.parametrize("name", TARGETS)
def test_a_tree_is_scored_as_each_path_in_order(name):
    lm = loaded(name)
    scores = score(lm)
    for row, prompt in enumerate(PROMPTS):
        for node in range(len(TREE)):
            logits, states = in_order(lm.model, prompt + [TREE[i] for i in path_to(node)])
            assert_equal(scores.logits[row, node], logits)
            assert_equal(scores.aux_states[row, node], states)


@torch.no_grad()
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_committed_is_as_if_read_in_order(name):
    """A path as long as a window, of another node per row; then a tree of one node."""
    lm = loaded(name)
    score(lm)
    paths = [path_to(7), path_to(4)]
    padded = torch.tensor([path + [0] * (5 - len(path)) for path in paths])
    lm.commit(padded, torch.tensor([len(path) for path in paths]))
    lm.cache.set_held([len(prompt) + len(path) for prompt, path in zip(PROMPTS, paths)])
    one = torch.ones(2, 1, 1, dtype=torch.bool)
    scores = lm.score_tree(torch.tensor([[7], [7]]), torch.zeros(2, 1, dtype=torch.int64), one)
    for row, (prompt, path) in enumerate(zip(PROMPTS, paths)):
        logits, _ = in_order(lm.model, prompt + [TREE[i] for i in path] + [7])
        assert_equal(scores.logits[row, 0], logits)


def test_distances_and_the_drawing_in_the_docstring():
    drawn = torch.tensor([[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]]).bool()
    distances = tree_distances(drawn)
    assert distances[0, 3, [0, 1, 3]].tolist() == [2, 1, 0]
    positions = torch.tensor([[3, 4, 4, 5]])
    committed = positions[:, :, None] - torch.arange(3)
    both = torch.cat([drawn, torch.ones(1, 4, 3, dtype=torch.bool)], dim=-1)
    reach = Reach(("sliding_attention",), 3)
    found = masks(reach, both, torch.cat([distances, committed], dim=-1), positions, torch.float32)[0, 0] == 0
    assert found.int().tolist() == [
        [1, 0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 0, 1],
        [1, 1, 0, 1, 0, 0, 0],
    ]


def test_what_cannot_be_exact_is_refused():
    for name in ("qwen3_next", "qwen3_5", "granitemoehybrid", "gemma4_text", "gpt2"):
        with pytest.raises(ValueError, match=rf"{name}.*not supported: .*known: "):
            check_supported(type("C", (), {"model_type": name})())
    odd = type("C", (), {"model_type": "qwen3", "layer_types": ["linear_attention"]})()
    with pytest.raises(ValueError, match="linear_attention.*cannot be taken back"):
        reach_of(odd)
    model = model_of("gpt_oss")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="'sdpa' leaves out the sinks of gpt_oss"):
        CachedLM(model)
    model = model_of("phi3")
    model.set_attn_implementation("split_prefix")
    with pytest.raises(ValueError, match="split_prefix.*windows"):
        CachedLM(model)
