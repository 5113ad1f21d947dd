"""CUDA graphs on a GPU: recorded steps give the tokens of steps that run as they are."""

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.nn import tree_attention as attention
from tests.eagle.tiny import tiny_head, tiny_target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TREES = ["none", "topk", "chain", "multi", "rsd", "hybrid"]
PROMPTS = torch.tensor([[7, 3, 22, 41, 5], [9, 1, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
HEAD_SIZE = 16  # flex attention takes no smaller heads on CUDA


@pytest.fixture(scope="module")
def engine() -> EagleModel:
    target = tiny_target(max_position_embeddings=2048, head_dim=HEAD_SIZE).cuda()
    return EagleModel.from_head(target, tiny_head(target))


def tokens(engine: EagleModel, count: int, **settings) -> list[list[int]]:
    settings = {"nodes": 12, "depth": 4, "seed": 3, "eos_token_id": [], **settings}
    rows = engine.generate(PROMPTS, count, attention_mask=MASK, return_dict_in_generate=True, **settings).rows
    return [row.new_tokens for row in rows]


def runner(engine: EagleModel):
    """What recorded the steps of the latest generation."""
    return engine._idle[-1].graphs


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_steps_give_the_tokens_of_eager_ones(engine, tree, temperature):
    settings = {"tree": tree, "temperature": temperature}
    expected = tokens(engine, 400, graphs=False, **settings)
    for _ in range(2):  # the second generation finds its windows recorded
        assert tokens(engine, 400, graphs=True, **settings) == expected
        assert engine.eager_because is None and runner(engine).recorded


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, on its way through flex attention
def test_attention_in_two_parts(engine):
    expected = tokens(engine, 300, temperature=0.0, graphs=False)
    engine.target.model.set_attn_implementation(attention.NAME)
    try:
        assert tokens(engine, 300, temperature=0.0, graphs=False) == expected
        assert tokens(engine, 300, temperature=0.0, graphs=True) == expected
    finally:
        engine.target.model.set_attn_implementation("sdpa")
    assert runner(engine).broken is None


def test_a_longer_request_is_recorded_anew(engine):
    tokens(engine, 100)
    assert tokens(engine, 1500) == tokens(engine, 1500, graphs=False)
    assert runner(engine).broken is None


def test_trees_that_alternate_are_recorded_once(engine):
    for tree in ("topk", "hybrid") * 2:
        tokens(engine, 60, tree=tree)
    recorded = runner(engine).recorded
    for tree in ("topk", "hybrid"):
        tokens(engine, 60, tree=tree)
    assert runner(engine).recorded == recorded


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
