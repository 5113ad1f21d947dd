"""A step on a device without values: nothing may look at one, or bring a tensor along from the host.

On `meta` every `.item()` and boolean index raises, and so does an operator that mixes in a tensor of the host, as both
would in the recording of a CUDA graph.
"""

import pytest
import torch
from eagle.engine.sequence import DecodingState, StepState

from eagle.drafters import CausalLMDrafter, Eagle3Drafter
from eagle.engine.distributions import SamplingParams, SamplingTransform
from eagle.engine.plan import Plan
from eagle.engine.step import Decoder
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


def after_the_prompt(target, drafter, plan) -> DecodingState:
    target.reserve(BATCH, plan.nodes, 50, DEPTH + 1)
    if builder := plan.builder:
        drafter.reserve(BATCH, builder.slots(plan.settings), 50, DEPTH + 1)
    zeros = torch.zeros(BATCH, LENGTH + 1, dtype=torch.int64, device=META)
    scores = target.prefill(zeros[:, 1:], zeros[:, 0])
    return DecodingState(StepState(zeros, zeros[:, 0], scores.aux), [])


@torch.inference_mode()
@pytest.mark.parametrize("pair", [head_pair, lm_pair])
@pytest.mark.parametrize("tree", ["none", "topk", "chain", "multi", "rsd", "hybrid"])
@pytest.mark.parametrize(("temperature", "verifier"), [(0.0, "greedy"), (1.0, "hsd"), (1.0, "token")])
def test_a_step_looks_at_no_value_and_brings_nothing_from_the_host(pair, tree, temperature, verifier):
    target, drafter = pair(tiny_target())
    law = SamplingTransform(SamplingParams(temperature, top_k=5, top_p=0.9, min_p=0.01))
    plan = Plan.resolve(tree, verifier, TreeSettings(12, DEPTH), law)
    decoder, state = Decoder(target, drafter, plan), after_the_prompt(target, drafter, plan)
    for _ in range(3):
        drafted = decoder.draft(state, None)
        scores = decoder.score(drafted.tree)
        outcome = decoder.verify(state, drafted, scores, None)
        packed = decoder.commit(state, scores, outcome)
        assert packed.device == META and packed.shape == (BATCH, 4 + outcome.tokens.shape[1])
        target.set_length_bound(LENGTH + 1)
        drafter.set_length_bound(LENGTH + 2)


def test_the_device_notices():
    x = torch.zeros(3, device=META)
    for wrong in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.tolist(), lambda: x + torch.zeros(3)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()
