"""Recorded steps against steps that run as they are: on a tape that stands in for CUDA graphs, on any machine."""

import pytest
import torch

from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter
from eagle.engine import distributions, session
from eagle.engine.distributions import Sampling
from eagle.engine.graphs import GraphRunner, graph_blocker
from eagle.nn import kv_cache
from eagle.nn import native as few_rows
from eagle.nn import tree_attention as attention
from eagle.nn.target import CachedLM
from eagle.trees import hybrid, native_level
from hsd import native as decisions
from tests.eagle.tape import HostWait, NoWaits, Operators, Tape
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

TREES = ["none", "topk", "chain", "multi", "rsd", "hybrid"]
PROMPTS = torch.tensor([[7, 3, 22, 41, 5], [9, 1, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Small buckets; a step is about a power of two of rows; hybrid trees have equal levels."""
    monkeypatch.setattr(hybrid, "levels_on", lambda _: "equal")
    monkeypatch.setattr(distributions, "sorts_wide_rows", lambda _: False)
    monkeypatch.setitem(kv_cache.SMALLEST, "cpu", 16)
    monkeypatch.setattr(session, "follows_rows", lambda _: False)
    reason = "the tape has operators of torch alone"
    monkeypatch.setattr(few_rows, "unavailable", lambda: reason)
    for library in (native_level.LIBRARY, decisions.LIBRARY):
        monkeypatch.setattr(library, "unavailable", reason)


def with_head(**changes) -> EagleModel:
    target = tiny_target(max_position_embeddings=256)
    return EagleModel.from_head(target, tiny_head(target, **changes))


def with_lm() -> EagleModel:
    return EagleModel(tiny_target(), CausalLMDrafter(tiny_target(seed=3, num_hidden_layers=4), VOCAB))


def taped(engine: EagleModel, **limits) -> tuple[EagleModel, GraphRunner]:
    """The engine, and what records the steps of its sessions, one after the other."""
    runner = GraphRunner(Tape(), **limits)
    engine.new_graphs = lambda: runner
    return engine, runner


def tokens(engine: EagleModel, count: int = 40, seed: int = 3, **settings) -> list[list[int]]:
    settings = {"nodes": 12, "depth": 4, **settings}
    rows = engine.generate(
        PROMPTS, count, attention_mask=MASK, seed=seed, return_dict_in_generate=True, **settings
    ).rows
    return [row.new_tokens for row in rows]


def replays(runner: GraphRunner) -> int:
    return runner.backend.log.count("replay")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replayed_steps_give_the_tokens_of_eager_ones(tree, temperature):
    settings = {"tree": tree, "temperature": temperature}
    engine, runner = taped(with_head())
    assert tokens(engine, **settings) == tokens(with_head(), **settings)
    assert engine.eager_because is None and replays(runner) > 16


@pytest.mark.parametrize("tree", ["topk", "chain", "multi", "rsd", "hybrid"])
def test_with_an_ordinary_draft_model(tree):
    engine, runner = taped(with_lm())
    assert tokens(engine, tree=tree) == tokens(with_lm(), tree=tree)
    assert replays(runner) > 16


@pytest.mark.parametrize(
    "settings",
    [
        {"verifier": "token"},
        {"verifier": "published", "tree": "chain"},
        {"verifier": "block", "tree": "chain"},
        {"top_p": 0.9},
        {"top_k": 20},
        {"min_p": 0.05},
        {"draft_temperature": 0.5},
        {"width": 2},
    ],
    ids=str,
)
def test_other_verifiers_and_settings(settings):
    engine, runner = taped(with_head(draft_vocab=40))
    assert tokens(engine, **settings) == tokens(with_head(draft_vocab=40), **settings)
    assert replays(runner) > 16


def test_attention_in_two_parts():
    engine, runner = taped(with_head())
    engine.target.model.set_attn_implementation(attention.NAME)
    assert tokens(engine) == tokens(with_head())
    assert replays(runner) > 16


def test_recordings_serve_the_next_generation_and_other_plans_beside_it():
    (engine, runner), plain = taped(with_head()), with_head()
    tokens(engine, seed=0)
    tokens(engine, seed=0, tree="none")
    recorded, log = runner.recorded, runner.backend.log
    before = log.count("record")
    assert tokens(engine, seed=0) == tokens(plain, seed=0)
    assert tokens(engine, seed=0, tree="none") == tokens(plain, seed=0, tree="none")
    assert log.count("record") - before <= 4 * 2  # windows that only one step had seen
    assert runner.recorded >= recorded > 2 and "reset" not in log


def test_a_longer_request_drops_what_was_recorded():
    (engine, runner), plain = taped(with_head()), with_head()
    tokens(engine, 30)
    assert runner.recorded
    assert tokens(engine, 120) == tokens(plain, 120)
    assert runner.backend.log.count("reset") == 1


def test_recordings_are_limited_and_the_oldest_go_first():
    engine, runner = taped(with_head(), most=2)
    assert tokens(engine, 80) == tokens(with_head(), 80)
    assert len(runner._steps) == 2


def test_every_window_is_warmed_up_then_recorded_then_replayed():
    engine, runner = taped(with_head())
    tokens(engine, tree="hybrid")
    log = runner.backend.log
    assert log[:4] == ["warm"] * 4 and log[4:12] == ["record", "replay"] * 4 and log[12:16] == ["replay"] * 4


REASONS = {
    "graphs=False": ({"graphs": False}, {}),
    "repetition_penalty=1.2 looks at": ({"repetition_penalty": 1.2}, {}),
    "a logits_processor looks at": ({"logits_processor": [lambda prefixes, scores: scores]}, {}),
    "asks the host how long": ({}, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(reason):
    settings, changes = REASONS[reason]
    target = tiny_target(**changes)
    engine, runner = taped(EagleModel.from_head(target, tiny_head(target)))
    tokens(engine, 10, **settings)
    assert reason in engine.eager_because and not runner.backend.log


def test_mixtures_of_experts_need_experts_that_do_not_ask_the_host():
    target = tiny_target("mixtral", experts_implementation="eager")
    engine, runner = taped(EagleModel.from_head(target, tiny_head(target)))
    tokens(engine, 10)
    assert "experts run one after the other" in engine.eager_because


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe"])
def test_other_families_are_recorded(family):
    pairs = [tiny_target(family) for _ in range(2)]
    engine, plain = (EagleModel.from_head(target, tiny_head(target)) for target in pairs)
    engine, runner = taped(engine)
    assert tokens(engine) == tokens(plain)
    assert engine.eager_because is None and replays(runner) > 16


def test_models_on_several_devices_are_not_recorded():
    engine, runner = taped(with_head())
    engine.target.layer_devices = (torch.device("cpu"), torch.device("meta"))
    assert graph_blocker(engine.target, engine.drafter, Sampling()) == "the models are spread over cpu, meta"


def test_without_a_gpu_the_reason_is_told_and_asking_for_graphs_warns():
    engine = with_head()
    tokens(engine, 5)
    assert "need a CUDA device" in engine.eager_because
    with pytest.warns(UserWarning, match="graphs=True: .* the model is on cpu"):
        tokens(engine, 5, graphs=True)


def test_a_phase_that_waits_is_found_when_recorded_and_decoding_goes_on(monkeypatch):
    engine, runner = taped(with_head())
    forward, expected = CachedLM.score, tokens(with_head())

    def waiting(*args, **options):
        scores = forward(*args, **options)
        scores.logits.sum().item()
        return scores

    monkeypatch.setattr(CachedLM, "score", waiting)
    with pytest.warns(UserWarning, match="goes on without graphs: score cannot be recorded: item inside a step"):
        found = tokens(engine)
    assert found == expected
    assert "score cannot be recorded" in engine.eager_because
    before = len(runner.backend.log)
    assert tokens(engine) == found and len(runner.backend.log) == before


def test_the_tape_notices_waits():
    x = torch.arange(6.0)
    waits = [
        lambda: x.tolist(),
        lambda: x.sum().item(),
        lambda: x[x > 2],
        lambda: bool(x[0]),
        lambda: x.nonzero(),
        lambda: torch.tensor([1]),
        lambda: x.cpu(),
        lambda: int(x[0]),
        lambda: torch.equal(x, x),
    ]
    for wait in waits:
        with pytest.raises(HostWait), NoWaits(), Operators():
            wait()
