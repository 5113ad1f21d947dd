"""The measured budget: a point's arithmetic, the choice, and one measurement on a tiny pair."""

from types import SimpleNamespace

import pytest
import torch

from eagle import EagleModel
from eagle.tuning import step_cost
from eagle.tuning.step_cost import PLAIN, Point, choose, measure, summarise
from tests.eagle.tiny import tiny_head, tiny_target


def step(expected: float, seconds: float):
    return SimpleNamespace(expected_accepted=expected, seconds={"draft": seconds / 4, "score": 3 * seconds / 4})


def test_a_point_is_mean_tau_over_the_median_step():
    point = summarise(9, 4, [step(1.0, 0.010), step(2.0, 0.020), step(3.0, 0.500)])
    assert point == Point(9, 4, pytest.approx(3.0), pytest.approx(20.0), pytest.approx(150.0))


def test_the_fastest_is_chosen_and_of_equals_the_smallest():
    slow, fast, same = Point(60, 7, 4.0, 40.0, 100.0), Point(21, 5, 3.0, 20.0, 150.0), Point(9, 4, 1.5, 10.0, 150.0)
    assert choose([slow, fast, same]) == same


def test_a_slowdown_is_not_chosen():
    plain, slow = Point(1, 1, 1.0, 5.0, 200.0), Point(9, 4, 1.5, 10.0, 150.0)
    assert choose([plain, slow]) == plain
    with pytest.raises(ValueError, match="no budget was measured"):
        choose([])


def test_one_node_is_plain_decoding(model):
    """What `choose` returns for plain decoding is a budget that `generate` takes."""
    ids, seeds = torch.tensor([[3, 1, 4]]), [torch.Generator().manual_seed(0) for _ in range(2)]
    plain = model.generate(ids, 8, temperature=1.0, tree="none", generator=seeds[0])
    one = model.generate(ids, 8, temperature=1.0, tree="hybrid", nodes=1, depth=1, generator=seeds[1])
    assert torch.equal(plain, one)


def test_no_steps_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no step was measured with 9 nodes"):
        summarise(9, 4, [])


@pytest.fixture(scope="module")
def model():
    target = tiny_target()
    return EagleModel.from_head(target, tiny_head(target))


def test_a_tiny_pair_is_measured(model):
    plain, drafted = measure(model, [[3, 1, 4], [1, 5]], max_new_tokens=8, candidates=(PLAIN, (5, 3)))
    assert (plain.nodes, plain.tau) == (1, 1.0)
    assert (drafted.nodes, drafted.depth) == (5, 3)
    assert 1 < drafted.tau <= 4
    assert drafted.step_ms > 0
    assert drafted.tokens_per_second == pytest.approx(1e3 * drafted.tau / drafted.step_ms)


def test_sampling_settings_reach_the_model(model):
    """Nearly all mass cut away by min_p: the target is almost greedy and accepts otherwise than without it."""
    sampled, cut = (
        measure(model, [[3, 1, 4]], max_new_tokens=16, candidates=((5, 3),), min_p=min_p)[0].tau for min_p in (0, 0.999)
    )
    assert sampled != cut


@pytest.mark.parametrize(("prompts", "candidates"), [([], ((5, 3),)), ([[1]], ())])
def test_nothing_to_measure_is_refused(model, prompts, candidates):
    with pytest.raises(ValueError, match="at least one of each"):
        measure(model, prompts, candidates=candidates)


def test_bundled_prompts_need_a_tokenizer(model):
    with pytest.raises(ValueError, match="pass the prompts as token ids"):
        measure(model)


def test_bundled_prompts_use_the_chat_template():
    class Tokenizer:
        chat_template = "x"

        def apply_chat_template(self, chat, tokenize, add_generation_prompt):
            assert not tokenize
            assert add_generation_prompt
            return f"<user>{chat[0]['content']}"

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) for letter in text]}

    ids = step_cost.bundled_prompts(Tokenizer())
    assert "".join(map(chr, ids[0])) == f"<user>{step_cost.PROMPTS[0]}"
    Tokenizer.chat_template = None
    assert "".join(map(chr, step_cost.bundled_prompts(Tokenizer())[1])) == step_cost.PROMPTS[1]
