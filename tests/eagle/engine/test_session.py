"""A row's tokens are its own: alone, beside others, joining late, next to rows that leave, with any tree."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import hsd
from eagle.api.eagle_model import EagleModel
from eagle.drafters import CausalLMDrafter, Eagle3Drafter
from eagle.engine import session as session_module
from eagle.engine.distributions import Sampling, SamplingParams
from eagle.engine.plan import Plan
from eagle.engine.session import Session
from eagle.engine.stopping import Stopping
from eagle.nn.target import CachedLM
from eagle.trees import TREES, TreeSettings, hybrid
from tests.eagle.tape import NoWaits
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

DEMO = Path(__file__).parents[3] / "checkpoints" / "demo"
LENGTHS = [5, 2, 9, 3, 7, 4, 6]
COUNTS = [14, 9, 16, 5, 12, 1, 11]


def no_repeat(prefixes, scores):
    """The token before may not come again."""
    return scores.scatter(1, prefixes[:, -1:], -torch.inf)


ROWS = [
    Sampling(SamplingParams(1.0)),
    Sampling(SamplingParams(0.0)),
    Sampling(SamplingParams(0.7, top_k=5)),
    Sampling(SamplingParams(1.0, top_p=0.8), draft=SamplingParams(0.6)),
    Sampling(SamplingParams(1.2, min_p=0.1)),
    Sampling(SamplingParams(1.0, repetition_penalty=1.3)),
    Sampling(SamplingParams(0.9, top_k=20, top_p=0.95), processors=(no_repeat,)),
]


@cache
def pair(drafter: str) -> EagleModel:
    if drafter == "demo":
        return EagleModel.from_pretrained(str(DEMO / "target"), str(DEMO / "eagle3"), dtype=torch.float32)
    target = tiny_target(max_position_embeddings=256)
    if drafter == "lm":
        return EagleModel(target, CausalLMDrafter(tiny_target(seed=3, num_hidden_layers=4), VOCAB))
    return EagleModel.from_head(target, tiny_head(target))


def plan_of(tree: str, nodes: int = 10, depth: int = 3, **settings) -> Plan:
    return Plan.resolve(tree, "hsd", TreeSettings(nodes, depth, **settings))


def prompt_of(index: int) -> list[int]:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(3, VOCAB, (LENGTHS[index],), generator=generator).tolist()


def add(session: Session, index: int):
    """Row `index` of those above, with its own prompt, parameters, seed and limit."""
    return session.add(prompt_of(index), ROWS[index], 100 + index, max_new_tokens=COUNTS[index])


def finish(session: Session) -> None:
    while session.rows:
        session.step()


def outcome(row) -> tuple:
    return row.new_tokens, row.stop_reason, [(step.accepted, step.emitted, step.truncated) for step in row.steps]


@cache
def alone(drafter: str, plan: Plan, index: int) -> tuple:
    session = Session(pair(drafter).target, pair(drafter).drafter, plan)
    row = add(session, index)
    finish(session)
    return outcome(row)


CASES = [("head", tree) for tree in TREES] + [("lm", tree) for tree in TREES if tree != "none"] + [("demo", "hybrid")]


@pytest.mark.parametrize(("drafter", "tree"), CASES)
def test_in_a_batch_of_seven_with_other_parameters_as_alone(drafter, tree):
    plan = plan_of(tree)
    session = Session(pair(drafter).target, pair(drafter).drafter, plan)
    rows = [add(session, index) for index in range(7)]
    finish(session)
    for index, row in enumerate(rows):
        assert outcome(row) == alone(drafter, plan, index), index


@pytest.mark.parametrize(("drafter", "tree"), [("head", "hybrid"), ("lm", "hybrid"), ("head", "rsd"), ("head", "topk")])
def test_joining_late_and_next_to_rows_that_leave_or_are_removed_as_alone(drafter, tree):
    """One row joins before every step, in another order; the third one is taken out and begins again at the end."""
    plan = plan_of(tree)
    session, rows = Session(pair(drafter).target, pair(drafter).drafter, plan), {}
    for index in (4, 2, 6, 0, 5, 3, 1):
        rows[index] = add(session, index)
        session.step()
        if index == 0:
            session.remove(rows.pop(6))
    rows[6] = add(session, 6)
    finish(session)
    for index, row in rows.items():
        assert outcome(row) == alone(drafter, plan, index), index


def test_a_removed_row_keeps_what_it_has_and_removing_it_again_does_nothing():
    session = Session(pair("head").target, pair("head").drafter, plan_of("hybrid"))
    first, second = add(session, 0), add(session, 2)
    session.step()
    kept = list(first.new_tokens)
    session.remove(first)
    session.remove(first)
    assert session.rows == [second]
    finish(session)
    assert first.new_tokens == kept and not first.finished
    assert outcome(second) == alone("head", plan_of("hybrid"), 2)


@pytest.mark.parametrize("tree", ["hybrid", "rsd"])
def test_in_a_step_about_more_rows_than_there_are_as_alone(tree, monkeypatch):
    """As on a GPU, where the number of rows is rounded up and levels are equal."""
    monkeypatch.setattr(session_module, "follows_rows", lambda _: False)
    monkeypatch.setattr(hybrid, "levels_on", lambda _: "equal")
    model, plan, alone_now = pair("head"), plan_of(tree, depth=4), {}
    for index in range(5):
        session = Session(model.target, model.drafter, plan)
        row = add(session, index)
        finish(session)
        alone_now[index] = outcome(row)
    session = Session(model.target, model.drafter, plan)
    rows = [add(session, index) for index in range(5)]
    assert session.width == 8
    finish(session)
    assert [outcome(row) for row in rows] == list(alone_now.values())


def test_two_sessions_of_one_model_at_once_as_alone():
    model, plans = pair("head"), [plan_of("hybrid"), plan_of("topk", 20, 4)]
    sessions = [Session(model.target, model.drafter, plan) for plan in plans]
    rows = [[add(session, index) for index in (0, 2, 4)] for session in sessions]
    while any(session.rows for session in sessions):
        for session in sessions:
            session.step()
    for plan, found in zip(plans, rows):
        assert [outcome(row) for row in found] == [alone("head", plan, index) for index in (0, 2, 4)]


def test_the_same_seed_gives_the_same_tokens_on_a_later_run_and_another_one_others():
    model, plan = pair("head"), plan_of("hybrid")
    session, found = Session(model.target, model.drafter, plan), []
    for seed in (7, 7, torch.Generator().manual_seed(7), 8):
        found.append(session.add(prompt_of(0), ROWS[0], seed, max_new_tokens=20))
        finish(session)
    tokens = [row.new_tokens for row in found]
    assert tokens[0] == tokens[1] == tokens[2] != tokens[3]


@pytest.mark.parametrize("drafter", ["head", "lm"])
def test_a_row_that_goes_on_where_another_one_ended_is_not_read_again(drafter):
    model, plan = pair(drafter), plan_of("hybrid")
    session, fresh = (Session(model.target, model.drafter, plan) for _ in range(2))
    first = session.add(prompt_of(2), ROWS[1], max_new_tokens=12)
    beside = add(session, 0)
    finish(session)
    prompt = [*first.ids, 7, 8, 9]
    again = session.add(prompt, ROWS[0], 5, max_new_tokens=12, reuse=True)
    expected = fresh.add(prompt, ROWS[0], 5, max_new_tokens=12)
    assert again.reused_tokens >= len(first.ids) - 1 - first.steps[-1].emitted and expected.reused_tokens == 0
    finish(session), finish(fresh)
    assert outcome(again) == outcome(expected)
    assert outcome(beside) == alone(drafter, plan, 0)


@pytest.mark.parametrize("tree", ["hybrid", "rsd", "multi", "chain", "topk", "none"])
def test_every_number_is_used_once_and_belongs_to_its_row(tree, monkeypatch):
    """Drafting and verification share none: their numbers would be correlated, and the tokens not the target's."""
    used: dict[str, list[float]] = {"draft": [], "decide": []}

    def spied(name, function):
        def spy(probs, uniform):
            used[name] += uniform.flatten().tolist()
            return function(probs, uniform)

        return spy

    decide = hsd.decide

    def spied_decide(tree, probs, verifier, uniforms):
        used["decide"] += uniforms.flatten().tolist()
        return decide(tree, probs, verifier, uniforms)

    monkeypatch.setattr(hsd, "decide", spied_decide)
    monkeypatch.setattr(hsd, "draw", spied("draft", hsd.draw))
    monkeypatch.setattr(hsd, "draw_distinct", spied("draft", hsd.draw_distinct))
    plan = plan_of(tree)
    session = Session(pair("head").target, pair("head").drafter, plan)
    rows = [session.add(prompt_of(index), ROWS[index], 100 + index, max_new_tokens=12) for index in (0, 2, 4)]
    finish(session)
    numbers = used["draft"] + used["decide"]
    assert len(set(numbers)) == len(numbers)
    own = set()
    for index, row in zip((0, 2, 4), rows):
        generator = torch.Generator().manual_seed(100 + index)
        for count in [1] + [hsd.DRAWS + plan.draws] * len(row.steps):
            own |= set(torch.rand(count, dtype=torch.float64, generator=generator).tolist())
    assert set(numbers) <= own
    steps = sum(len(row.steps) for row in rows)
    assert len(used["decide"]) == (0 if tree == "none" else 2 * steps)
    assert (len(used["draft"]) > len(rows)) == (tree not in ("topk",))


class OneRead(NoWaits):
    """The first `tolist` passes."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.tolist and not self.reads:
            self.reads += 1
            return function(*args, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("drafter", ["head", "lm"])
@pytest.mark.parametrize("tree", TREES)
def test_the_host_reads_once_in_a_step(drafter, tree, monkeypatch):
    monkeypatch.setattr(hybrid, "levels_on", lambda _: "equal")
    session = Session(pair(drafter).target, pair(drafter).drafter, plan_of(tree))
    for index in (0, 2, 4):
        session.add(prompt_of(index), ROWS[index], index, max_new_tokens=100)
    for _ in range(3):
        with OneRead() as mode:
            session.step()
        assert mode.reads == 1


def test_a_row_that_its_first_token_ends_takes_no_place():
    session = Session(pair("head").target, pair("head").drafter, plan_of("hybrid"))
    other = add(session, 0)
    ended = session.add(prompt_of(2), ROWS[1], max_new_tokens=1)
    assert ended.stop_reason == "length" and len(ended.new_tokens) == 1 and not ended.steps
    again = session.add(prompt_of(2), ROWS[1], stopping=Stopping(frozenset(ended.new_tokens)))
    assert again.stop_reason == "eos" and session.rows == [other]
    finish(session)
    assert outcome(other) == alone("head", plan_of("hybrid"), 0)
    assert session.step() == []


def test_a_step_is_recorded_for_every_row_that_took_part():
    session = Session(pair("head").target, pair("head").drafter, plan_of("hybrid"))
    rows = [add(session, index) for index in (0, 3, 2)]
    while session.rows:
        before = list(session.rows)
        records = session.step()
        assert [row.steps[-1] for row in before] == records
    assert all(1 + sum(step.emitted for step in row.steps) == len(row.new_tokens) for row in rows)


def in_one_session(model: EagleModel, plan: Plan, embedding: torch.Tensor, fault: str) -> None:
    """The embeddings become NaN while a row is in use."""
    with model.session(plan) as session:
        add(session, 0)
        with torch.no_grad():
            embedding.fill_(torch.nan)
        session.step() if fault == "in a step" else add(session, 2)


def test_targets_that_are_not_finite_raise_and_the_next_session_is_sound():
    target = tiny_target(max_position_embeddings=256)
    model, plan = EagleModel.from_head(target, tiny_head(target)), plan_of("hybrid")
    embedding = target.model.embed_tokens.weight
    kept = embedding.detach().clone()
    for fault in ("in a step", "after the prompt"):
        with pytest.raises(ValueError, match=f"row 0 .* {fault}"):
            in_one_session(model, plan, embedding, fault)
        with torch.no_grad():
            embedding.copy_(kept)
        with model.session(plan) as session:
            rows = [add(session, index) for index in (0, 2)]
            finish(session)
        assert [outcome(row) for row in rows] == [alone("head", plan, index) for index in (0, 2)]


def test_what_a_session_refuses():
    model = pair("head")
    with pytest.raises(ValueError, match="'hybrid' needs a drafter"):
        Session(model.target, None, plan_of("hybrid"))
    session = Session(model.target, model.drafter, Plan.resolve("topk", "hsd", TreeSettings(8, 3), temperature=0.0))
    with pytest.raises(ValueError, match="the prompt is empty"):
        session.add([])
    with pytest.raises(ValueError, match="temperature=0.5: this session's plan is for temperature 0"):
        session.add([1, 2], SamplingParams(0.5))
    assert session.add([1, 2], max_new_tokens=3) is session.rows[0]


def test_a_sampling_plan_decodes_a_greedy_row_as_a_greedy_plan_does():
    model, greedy = pair("head"), Plan.resolve("none", "hsd", TreeSettings(), temperature=0.0)
    session = Session(model.target, model.drafter, greedy)
    row = session.add(prompt_of(1), replace(ROWS[1]), max_new_tokens=COUNTS[1])
    finish(session)
    assert row.new_tokens == alone("head", plan_of("hybrid"), 1)[0] == alone("head", plan_of("rsd"), 1)[0]


def test_weights_of_a_draft_model_that_were_replaced_count_from_the_next_session_on():
    """In the caches of a session before, too: what is drafted has the distributions of the new weights."""
    target, small, other = tiny_target(), tiny_target(seed=3), tiny_target()

    def expected(model: EagleModel) -> list[float]:
        given = {"max_new_tokens": 9, "temperature": 0.0, "tree": "topk", "nodes": 9, "depth": 3}
        [row] = model.generate(torch.tensor([prompt_of(0)]), return_dict_in_generate=True, **given).rows
        return [step.expected_accepted for step in row.steps]

    model = EagleModel(target, CausalLMDrafter(small, VOCAB))
    before = expected(model)
    small.load_state_dict(other.state_dict(), assign=True)
    assert expected(model) == expected(EagleModel(target, CausalLMDrafter(other, VOCAB))) != before


@pytest.mark.parametrize("drafter", ["head", "lm"])
def test_a_session_looks_at_its_models_once(drafter, monkeypatch):
    model, seen = pair(drafter), []
    for kind in (CachedLM, Eagle3Drafter):
        refresh = kind.refresh
        monkeypatch.setattr(kind, "refresh", lambda lm, refresh=refresh: (seen.append(type(lm)), refresh(lm)))
    workspace = Session(model.target, model.drafter, plan_of("topk")).close()
    once = [CachedLM, Eagle3Drafter if drafter == "head" else CachedLM]
    assert seen == once
    Session(model.target, model.drafter, plan_of("topk"), workspace=workspace)
    assert seen == once * 2
