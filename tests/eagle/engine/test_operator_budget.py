"""How many kernels a phase may launch on a GPU that is not there: the shape of Llama-3.1-8B with 8 of its layers, one
row, a tree of 60 nodes over 128,256 tokens. Each costs a launch, and Python's time where steps are not recorded. The
numbers are those reached; whoever lowers one lowers it here.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle import SamplingParams
from eagle.api.eagle_model import EagleModel
from eagle.engine.plan import Plan
from eagle.nn.head import Eagle3Head, HeadConfig, default_taps
from eagle.trees import TreeSettings
from eval.measure.shapes import SHAPES
from tests.eagle.fake_cuda import PHASES, Watch, fake_cuda, made_on

LAYERS = 8
BUDGET = {  # draft, score, verify, commit
    ("hybrid", "hsd"): (764, 188, 251, 32),
    ("hybrid", "token"): (764, 188, 244, 32),
    ("rsd", "hsd"): (2388, 188, 1709, 32),
    ("topk", "hsd"): (343, 188, 179, 32),
    ("none", "hsd"): (6, 161, 27, 32),
}


def large_pair() -> EagleModel:
    """Made on cuda:0 in bfloat16."""
    family, shape, draft_vocab = SHAPES["llama-3.1-8b"]
    config = AutoConfig.for_model(
        family, **{**shape, "num_hidden_layers": LAYERS}, eos_token_id=None, bos_token_id=None
    )
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    of_head = HeadConfig(
        **{name: getattr(config, name) for name in sizes},
        draft_vocab_size=draft_vocab,
        taps=default_taps(LAYERS),
        target_hidden_size=config.hidden_size,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with made_on("cuda:0"):
            return EagleModel.from_head(AutoModelForCausalLM.from_config(config), Eagle3Head(of_head))
    finally:
        torch.set_default_dtype(torch.float32)


def kernels(tree: str, verifier: str) -> tuple[int, ...]:
    """By phase, of the step behind a prompt."""
    watch = Watch(accepted=3)
    with fake_cuda(watch, granule=256):
        plan = Plan.resolve(tree, verifier, TreeSettings(60, 7))
        with large_pair().session(plan, graphs=False) as session:
            session.add([1] * 400, SamplingParams(1.0), max_new_tokens=64)
            watch.clear()
            session.step()
    return tuple(watch.launches[phase] for phase in PHASES)


@pytest.mark.parametrize(("tree", "verifier"), BUDGET)
def test_a_phase_launches_no_more_kernels_than_it_did(tree, verifier):
    found = kernels(tree, verifier)
    assert all(count <= most for count, most in zip(found, BUDGET[tree, verifier], strict=True)), found
