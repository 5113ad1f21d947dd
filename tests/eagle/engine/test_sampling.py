"""Laws under sampling settings, and a repetition penalty along each node's own prefix."""

import pytest
import torch

from eagle.engine.sampling import SamplingParams, SamplingTransform
from eagle.model.eagle_model import EagleModel
from tests.eagle.tiny import tiny_head, tiny_target

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])


def test_plain_and_tempered():
    assert torch.allclose(SamplingTransform(SamplingParams())(LOGITS), LOGITS.softmax(-1))
    assert torch.allclose(SamplingTransform(SamplingParams(0.5))(LOGITS), (2 * LOGITS).softmax(-1))
    assert SamplingTransform(SamplingParams(0))(LOGITS).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "settings, kept",
    [
        (SamplingParams(top_k=2), 2),
        (SamplingParams(top_p=0.8), 2),
        (SamplingParams(top_p=0), 5),
        (SamplingParams(min_p=0.3), 2),
    ],
)
def test_truncation(settings, kept):
    law = SamplingTransform(settings)(LOGITS)
    assert int((law > 0).sum()) == kept and law.sum().item() == pytest.approx(1)


def test_penalty_needs_the_prefix():
    with pytest.raises(ValueError, match="pass prefixes"):
        SamplingTransform(SamplingParams(repetition_penalty=1.2))(LOGITS)


@pytest.mark.parametrize("tree", ["none", "topk", "chain", "hybrid"])
def test_greedy_with_repetition_penalty_equals_transformers(tree):
    target = tiny_target(spread=0.2)
    model = EagleModel.from_head(target, tiny_head(target))
    prompt = torch.tensor([[7, 3, 9, 1, 5]])
    want = target.generate(prompt, max_new_tokens=40, do_sample=False, repetition_penalty=1.3, pad_token_id=0)
    plain = target.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert not torch.equal(want, plain)
    out = model.generate(prompt, 40, temperature=0, repetition_penalty=1.3, tree=tree, nodes=20, depth=4)
    assert torch.equal(out, want)
