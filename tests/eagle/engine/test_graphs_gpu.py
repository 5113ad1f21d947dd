"""CUDA graphs on a GPU: captured steps give the tokens of steps that run as they are."""

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.engine.graphs import GraphRunner
from eagle.nn import tree_attention as attention
from tests.eagle.tiny import tiny_head, tiny_target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TREES = ["none", "topk", "chain", "multi", "rsd", "hybrid"]
PROMPTS = torch.tensor([[7, 3, 22, 41, 5], [9, 1, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.fixture(scope="module")
def engine() -> EagleModel:
    target = tiny_target(max_position_embeddings=2048).cuda()
    return EagleModel.from_head(target, tiny_head(target))


def tokens(engine: EagleModel, count: int, **settings) -> list[list[int]]:
    rows = engine.generate(
        PROMPTS,
        count,
        attention_mask=MASK,
        nodes=12,
        depth=4,
        seed=3,
        return_dict_in_generate=True,
        **settings,
    ).rows
    return [row.new_tokens for row in rows]


def runner(engine: EagleModel) -> GraphRunner:
    """What recorded the steps of the session before, in the workspace that waits for the next one."""
    [space] = engine._idle
    return space.graphs


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_captured_steps_give_the_tokens_of_eager_ones(engine, tree, temperature):
    settings = {"tree": tree, "temperature": temperature}
    expected = tokens(engine, 400, graphs=False, **settings)
    for _ in range(2):  # the second generation finds its windows recorded
        assert tokens(engine, 400, graphs=True, **settings) == expected
        assert engine.eager_because is None and runner(engine).recorded


def test_attention_in_two_parts(engine):
    expected = tokens(engine, 300, temperature=0.0, graphs=False)
    engine.target.model.set_attn_implementation(attention.NAME)
    try:
        assert tokens(engine, 300, temperature=0.0, graphs=False) == expected
        assert tokens(engine, 300, temperature=0.0, graphs=True) == expected
    finally:
        engine.target.model.set_attn_implementation("sdpa")
    assert runner(engine).broken is None


def test_a_longer_request_is_captured_anew(engine):
    tokens(engine, 100)
    assert tokens(engine, 1500) == tokens(engine, 1500, graphs=False)
    assert runner(engine).broken is None


def test_the_global_generator_is_used_without_another(engine):
    runs = []
    for graphs in (False, True):
        torch.manual_seed(5)
        runs.append(engine.generate(PROMPTS[:1], 300, nodes=12, depth=4, graphs=graphs).tolist())
    assert runs[0] == runs[1]


def test_memory_is_flat_over_many_generations(engine):
    for _ in range(3):
        tokens(engine, 60)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        tokens(engine, 60)
    assert torch.cuda.memory_allocated() == before
