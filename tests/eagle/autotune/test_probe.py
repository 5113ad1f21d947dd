"""The probe compares what generation does."""

import pytest
import torch

import hsd
from eagle import EagleModel, SamplingParams
from eagle.autotune.probe import StateProbe, TreeLimits
from eagle.engine.plan import Plan
from eagle.engine.session import Session
from eagle.trees import TreeSettings
from tests.eagle.tiny import tiny_head, tiny_target

PROMPT = [3, 1, 4, 1, 5]
SETTINGS = TreeSettings(12, 4)


@pytest.fixture(scope="module", params=[60, 40], ids=["same vocabulary", "smaller draft vocabulary"])
def model(request):
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=request.param))


def probe_of(model, *plans, temperature=1.0):
    return StateProbe(model, SamplingParams(temperature), TreeLimits.of(list(plans) or [("hybrid", SETTINGS)]))


def steps(model, seed=0, count=30):
    probe, generator = probe_of(model), torch.Generator().manual_seed(seed)
    follow = as_generated(generator)
    for _ in probe.states(PROMPT, count, generator, follow):
        yield probe


def as_generated(generator):
    """How a walk moves on with the numbers that a generation's step takes: the decision's, then those of the tree. The
    probe draws a tree before it moves on, so the generator is put back between the two.
    """
    after = []

    def follow(probe):
        if after:
            generator.set_state(after.pop())
        before = generator.get_state()
        torch.rand(hsd.DRAWS, dtype=torch.float64, generator=generator)
        drafted = probe.draft("hybrid", SETTINGS)
        after.append(generator.get_state())
        generator.set_state(before)
        return drafted, "hsd"

    return follow


def generated(model, count, seed):
    """The row that a session gives with the walk's tree."""
    session = Session(model.target, model.drafter, Plan.resolve("hybrid", "hsd", SETTINGS))
    row = session.add(PROMPT, SamplingParams(1.0), seed, max_new_tokens=count)
    while session.rows:
        session.step()
    return row


def test_a_walk_along_a_method_is_its_generation(model):
    *_, probe = steps(model)
    out = generated(model, 30, 0)
    assert probe.row.ids == out.ids


def test_the_walk_expects_what_generation_expects(model):
    found = []
    probe, generator = probe_of(model), torch.Generator().manual_seed(3)
    move = as_generated(generator)

    def follow(probe):
        drafted, verifier = move(probe)
        found.append(drafted.expected("hsd"))
        return drafted, verifier

    for _ in probe.states(PROMPT, 20, generator, follow):
        pass
    out = generated(model, 20, 3)
    assert found == pytest.approx([step.expected_accepted for step in out.steps], abs=1e-4)


def test_looking_at_trees_changes_nothing(model):
    """Drafting other trees at a state leaves the state, and what is drafted next, as it was."""
    probe = probe_of(model, ("hybrid", SETTINGS), ("topk", TreeSettings(20, 5)), ("chain", SETTINGS))
    for index in probe.states(PROMPT, 12, torch.Generator().manual_seed(1)):
        first = probe.draft("topk", SETTINGS)
        probe.draft("hybrid", SETTINGS, draft_sampling=SamplingParams(0.5))
        probe.draft("topk", TreeSettings(20, 5))
        again = probe.draft("topk", SETTINGS)
        assert torch.equal(first.tree.tokens, again.tree.tokens)
        assert torch.allclose(first.target_probs, again.target_probs, atol=1e-5)
        if index == 3:
            break


def test_a_plan_needs_room(model):
    probe = probe_of(model)
    with pytest.raises(ValueError, match="reserve"):  # noqa: PT012  the plan is refused within the walk
        for _ in probe.states(PROMPT, 12, torch.Generator().manual_seed(2)):
            probe.draft("hybrid", TreeSettings(60, 7))


def test_a_repetition_penalty_is_refused(model):
    with pytest.raises(ValueError, match="repetition_penalty"):
        StateProbe(model, SamplingParams(1.0, repetition_penalty=1.2), TreeLimits.of([("hybrid", SETTINGS)]))


def test_stopping_laws_are_kept(model):
    drafted = next(steps(model)).draft("hybrid", SETTINGS)
    assert drafted.stopping_law("hsd") is drafted.stopping_law("hsd")
    assert (
        drafted.expected("hsd") == hsd.stopping_law(drafted.tree, drafted.target_probs, "hsd").expected_accepted.item()
    )
