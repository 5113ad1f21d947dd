"""Held-out numbers: against plain loops, and against what the verifier accepts of sampled chains."""

import copy
import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

import hsd
from eagle.api.eagle_model import EagleModel
from eagle.train.config import TrainConfig
from eagle.train.data.conversations import Example, collate
from eagle.train.data.features import OnlineFeatures
from eagle.train.evaluation.agreement import compare_step, evaluate
from eagle.train.evaluation.drafted_trees import TreeEvaluation
from eagle.train.objective.loss import TargetProbs
from eagle.train.setup import build_head
from tests.eagle.tiny import tiny_head
from tests.eagle.train.test_unroll import draft_like_a_decoder

STEPS = 3


@pytest.fixture(scope="module")
def target(tiny_target):
    return AutoModelForCausalLM.from_pretrained(tiny_target).eval()


def example(length: int, start: int, seed: int) -> Example:
    ids = torch.randint(6, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(ids, [i >= start for i in range(length)])


def by_the_book(head, target, source, item: Example) -> list[tuple[list[float], float]]:
    """For every origin of one answer: sum min(p, q) per step, and the chain's E[accepted]."""
    tokens, n = torch.tensor([item.ids]), len(item.ids)
    with torch.no_grad():
        taps = source(collate([item])).taps
        laws = target(tokens).logits[0].softmax(-1)
        found = []
        for origin in range(item.answer.index(True) - 1, n - 2):
            states = draft_like_a_decoder(head, taps, tokens, origin, min(STEPS, n - 2 - origin))
            survive, expected, accepted = 1.0, 0.0, []
            for step, hidden in enumerate(states):
                p, q = laws[origin + 1 + step], head.logits(hidden)[0, 0].softmax(-1)
                token = item.ids[origin + 2 + step]
                accepted.append(torch.minimum(p, q).sum().item())
                expected += survive * accepted[-1]
                survive *= min(1.0, (q[token] / p[token]).item())
            found.append((accepted, expected))
    return found


def test_the_report_equals_plain_loops(settings, target, tmp_path):
    items = [example(12, 6, 0), example(9, 3, 1)]
    head = build_head(settings(tmp_path), target, items)
    source = OnlineFeatures(target, head.config.taps)
    report = evaluate(head, source, [collate(items)], STEPS)
    origins = [origin for item in items for origin in by_the_book(head, target, source, item)]
    assert report.positions == len(origins)
    assert report.chain == pytest.approx(sum(e for _, e in origins) / len(origins), abs=2e-4)
    for step, value in enumerate(report.accepted):
        seen = [accepted[step] for accepted, _ in origins if len(accepted) > step]
        assert value == pytest.approx(sum(seen) / len(seen), abs=2e-4)


def test_the_chain_formula_is_what_token_wise_verification_accepts():
    """Enumerate all two-token texts of a random world: E over texts ~ p of the formula = E over drafts ~ q of hsd's."""
    v, generator = 4, torch.Generator().manual_seed(0)
    p1, q1 = torch.rand(2, v, generator=generator, dtype=torch.float64).softmax(-1)
    p2, q2 = (3 * torch.rand(2, v, v, generator=generator, dtype=torch.float64)).softmax(-1)
    verified = formula = 0.0
    for x, y in itertools.product(range(v), repeat=2):
        tree = hsd.DraftTree(
            torch.tensor([0, x, y]), torch.tensor([-1, 0, 1]), torch.tensor([-1, 0, 1]), torch.stack([q1, q2[x]])
        )
        law = hsd.stopping_law(tree, torch.stack([p1, p2[x], p1]), verifier="token")
        verified += q1[x] * q2[x, y] * law.expected_accepted
    for x in range(v):
        ones = torch.ones(1, dtype=torch.float64)
        first = compare_step(q1.log()[None], TargetProbs(p1[None], ones, ones), torch.tensor([x]), None)
        second = compare_step(q2[x].log()[None], TargetProbs(p2[x][None], ones, ones), torch.tensor([0]), None)
        formula += p1[x] * (first.accepted + first.ratio * second.accepted).item()
    assert formula == pytest.approx(verified.item(), abs=1e-6)


def test_a_token_that_cannot_be_drafted_ends_the_chain():
    support = torch.tensor([0, 2])
    law = TargetProbs(torch.tensor([[0.5, 0.5]]), torch.tensor([0.8]), torch.ones(1))
    out = [compare_step(torch.zeros(1, 2), law, torch.tensor([token]), support) for token in (2, 1, 3)]
    assert [o.ratio.item() for o in out] == [1.0, 0.0, 0.0]
    assert out[0].accepted.item() == pytest.approx(0.8)


@pytest.mark.parametrize("vocabulary", [96, 40])
def test_drafted_trees_are_those_of_the_head_given_now(target, vocabulary):
    """The evaluation's own copy of a head takes over its weights and which tokens it drafts."""
    heads = [tiny_head(target, seed, draft_vocab=vocabulary) for seed in (1, 2)]
    config = TrainConfig(eval_prompts=2, eval_tokens=12, eval_nodes=8, eval_depth=3, seed=5)
    trees = TreeEvaluation(target, heads[0], [example(12, 6, 1), example(9, 4, 2)], config)
    for head in (*heads, heads[0]):
        fresh = EagleModel.from_head(target, copy.deepcopy(head))
        generator, expected = torch.Generator().manual_seed(5), []
        for prompt in trees.prompts:
            answer = fresh.generate(
                torch.tensor([prompt]), 12, temperature=1.0, tree="hybrid", nodes=8, depth=3, generator=generator,
                return_dict_in_generate=True,
            )  # fmt: skip
            expected.append([step.expected_accepted for step in answer.rows[0].steps])
        assert trees.answers(head) == expected
