"""A step on a device without values: nothing may look at one, or bring a tensor along from the host.

On `meta` every `.item()` and boolean index raises, and so does an operator that mixes in a tensor of the host, as both
would in the recording of a CUDA graph.
"""

import pytest
import torch

from eagle.drafters import CausalLMDrafter, Eagle3Drafter
from eagle.engine import step
from eagle.engine.distributions import Sampling, SamplingParams
from eagle.engine.plan import Plan
from eagle.engine.records import GeneratedRow
from eagle.engine.session import Session, _Row
from eagle.engine.stopping import Stopping
from eagle.nn.target import CachedLM
from eagle.trees import TreeSettings
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

BATCH, LENGTH, DEPTH = 2, 6, 4
META = torch.device("meta")


def head_pair(target) -> tuple[CachedLM, Eagle3Drafter]:
    head = tiny_head(target, draft_vocab=40).to(META)
    target = target.to(META)
    head.bind_embeddings(target.get_input_embeddings())
    return CachedLM(target, tuple(head.config.taps)), Eagle3Drafter(head)


def lm_pair(target) -> tuple[CachedLM, CausalLMDrafter]:
    return CachedLM(target.to(META)), CausalLMDrafter(tiny_target(num_hidden_layers=4).to(META), VOCAB)


def after_the_prompt(target, drafter, plan, params) -> Session:
    """A session with rows whose prompts are read; which token follows is not known on this device."""
    session = Session(target, drafter, plan)
    for place in range(BATCH):
        row = _Row(GeneratedRow([0] * LENGTH, [0]), Sampling(params), Stopping(), torch.Generator(), 0.0)
        session._reserve(place + 1, 50)
        scores = session.target.read_prompt(place, row.record.prompt)
        if plan.builder is not None:
            session.drafter.read_prompt(place, row.record.prompt, 0, scores.aux_states)
        if scores.aux_states is not None:
            session._aux_of(scores.aux_states)
        session._rows.append(row)
        session._arrange()
    return session


@torch.inference_mode()
@pytest.mark.parametrize(
    ("pair", "tree", "temperature", "verifier"),
    [
        *((head_pair, tree, 1.0, "hsd") for tree in ("none", "topk", "chain", "multi", "rsd", "hybrid")),
        *((head_pair, tree, 1.0, "token") for tree in ("topk", "multi", "rsd")),
        *((head_pair, tree, 0.0, "greedy") for tree in ("none", "topk", "hybrid")),
        *((lm_pair, tree, 1.0, "hsd") for tree in ("topk", "chain", "hybrid")),
    ],
)
def test_a_step_looks_at_no_value_and_brings_nothing_from_the_host(pair, tree, temperature, verifier):
    target, drafter = pair(tiny_target())
    params = SamplingParams(temperature, top_k=5, top_p=0.9, min_p=0.01)
    plan = Plan.resolve(tree, "hsd" if verifier == "greedy" else verifier, TreeSettings(12, DEPTH), temperature)
    session = after_the_prompt(target, drafter, plan, params)
    for _ in range(3):
        session.begin_step()
        drafted, replaced = step.draft(session)
        scores = step.score(session, drafted)
        probs, kept = step.verify(session, drafted, scores.logits)
        packed = step.commit(session, drafted, scores, probs, kept, replaced)
        assert packed.device == META and packed.shape == (BATCH, 4 + kept.path.shape[1])
        session._hold([LENGTH + 1] * BATCH)


def test_the_device_notices():
    x = torch.zeros(3, device=META)
    for wrong in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.tolist(), lambda: x + torch.zeros(3)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()
