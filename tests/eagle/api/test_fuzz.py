"""Random arguments of `generate`, good and bad mixed: a correct result or one sentence, never anything else.

FUZZ_EXAMPLES=3000 bash scripts/test.sh tests/eagle/api/test_fuzz.py
"""

import math
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle.api.eagle_model import EagleModel
from tests.eagle.tiny import VOCAB, tiny_head, tiny_target

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=4),
    st.lists(st.integers(-2, VOCAB + 5), max_size=3),
    st.just(torch.tensor(3)),
    st.just(torch.tensor([1.5])),
    st.just(object()),
)
GOOD = {
    "max_new_tokens": st.integers(1, 12),
    "max_length": st.integers(6, 24),
    "do_sample": st.booleans(),
    "temperature": st.floats(0.0, 3.0),
    "top_k": st.integers(0, VOCAB + 10),
    "top_p": st.floats(0.0, 1.0),
    "min_p": st.floats(0.0, 1.0),
    "repetition_penalty": st.floats(0.5, 2.0),
    "num_return_sequences": st.integers(1, 3),
    "eos_token_id": st.one_of(st.integers(0, VOCAB - 1), st.lists(st.integers(0, VOCAB - 1), max_size=3)),
    "pad_token_id": st.integers(0, VOCAB - 1),
    "tree": st.sampled_from(["none", "topk", "chain", "multi", "rsd", "hybrid"]),
    "verifier": st.sampled_from(["hsd", "token"]),
    "nodes": st.integers(1, 20),
    "depth": st.integers(1, 6),
    "width": st.integers(1, 6),
    "beta": st.floats(0.0, 1.0),
    "sharpness": st.floats(0.01, 100.0),
    "draft_temperature": st.floats(0.0, 3.0),
    "seed": st.integers(0, 2**40),
    "graphs": st.booleans(),
}
BAD = st.dictionaries(st.sampled_from([*GOOD, "generator", "logits_processor", "use_cach"]), ANYTHING, max_size=1)
ODD = st.sampled_from([{"tree": "auto"}, {"tree": "bush"}, {"verifier": "block"}, {"verifier": "greedy"}, {"seed": -1}])
ARGUMENTS = st.builds(
    lambda good, odd: {**good, **odd},
    st.fixed_dictionaries({}, optional=GOOD),
    st.one_of(st.just({}), st.just({}), BAD, ODD),
)
PROMPTS = st.one_of(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6).map(lambda ids: torch.tensor([ids])),
    st.lists(st.integers(-1, VOCAB + 1), max_size=4).map(lambda ids: torch.tensor([ids], dtype=torch.int64)),
    st.sampled_from([torch.zeros(0, 3, dtype=torch.int64), torch.zeros(2), [1, 2], "text", None]),
)


@pytest.fixture(scope="module")
def engine():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target, draft_vocab=40))


def check_result(engine, prompt, arguments, out) -> None:
    """Tokens of temperature 0 are plain decoding's; others have p > 0; every stopping distribution made sense."""
    for row in out.rows:
        assert len(row.new_tokens) >= 1 and all(0 <= token < VOCAB for token in row.new_tokens)
        assert all(0 <= step.expected_accepted <= step.nodes for step in row.steps)
        assert sum(step.emitted for step in row.steps) + 1 == len(row.new_tokens)
    if arguments.get("temperature") == 0 and arguments.get("do_sample") is not True:
        plain = engine.generate(prompt, **{**arguments, "tree": "none", "return_dict_in_generate": True})
        assert [row.new_tokens for row in out.rows] == [row.new_tokens for row in plain.rows]


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(prompt=PROMPTS, arguments=ARGUMENTS)
def test_a_correct_result_or_one_sentence(engine, prompt, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        refusal = None
        try:
            out = engine.generate(prompt, **{**arguments, "return_dict_in_generate": True})
        except ValueError as error:
            refusal = str(error)
        else:
            check_result(engine, prompt, arguments, out)
    assert refusal is None or (refusal and "\n" not in refusal), refusal


def test_the_arguments_are_mostly_good():
    """Otherwise nearly every example would end in an error and say nothing about results."""
    outcomes, engine = [], EagleModel.from_head(target := tiny_target(), tiny_head(target))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(arguments=ARGUMENTS)
    def count(arguments):
        try:
            engine.prepare(torch.tensor([[3, 1, 4]]), arguments)
            outcomes.append(True)
        except ValueError:
            outcomes.append(False)

    count()
    assert math.fsum(outcomes) / len(outcomes) > 0.3
