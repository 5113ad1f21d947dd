"""What `generate` makes of its arguments: precedence, sampling or greedy, limits, and every bad value named."""

import dataclasses
import itertools
import math

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from eagle.api.arguments import GenerateArguments, resolve_arguments, stated
from eagle.engine.distributions import SamplingParams
from eagle.trees import TreeSettings


def resolve(file=None, **given):
    return resolve_arguments(given, file or {})


def test_nothing_given_is_the_plain_distribution():
    args = resolve()
    assert args.sampling == SamplingParams(1.0, 0, 1.0, 0.0, 1.0) == args.draft_sampling
    assert (args.tree, args.verifier, args.settings) == ("hybrid", "hsd", TreeSettings())
    assert args.new_tokens(10) == 512 and args.num_return_sequences == 1
    assert args.eos_token_id is None and args.pad_token_id is None and not args.return_dict_in_generate
    assert args.stop_strings == args.logits_processor == args.stopping_criteria == ()


def expected_temperature(do_sample, temperature, file):
    """The rule, written out a second time; None where it is an error."""
    chosen = temperature if temperature is not None else file.get("temperature", 1.0)
    if do_sample is not None:
        sample = do_sample
    elif temperature is not None:
        return temperature
    elif "do_sample" in file:
        sample = file["do_sample"]
    else:
        return chosen
    if not sample:
        return 0.0
    return chosen or None


FILES = [
    {name: value for name, value in (("do_sample", sample), ("temperature", heat)) if value is not None}
    for sample, heat in itertools.product((None, True, False), (None, 0.6, 0.0))
]


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize("do_sample", [None, True, False])
@pytest.mark.parametrize("temperature", [None, 0.7, 0, 1])
@pytest.mark.parametrize("by_config", [False, True])
def test_sampling_or_greedy(file, do_sample, temperature, by_config):
    given = {"do_sample": do_sample, "temperature": temperature}
    if by_config:
        given = {"generation_config": GenerationConfig(**{k: v for k, v in given.items() if v is not None})}
    want = expected_temperature(do_sample, temperature, file)
    if want is None:
        with pytest.raises(ValueError, match="do_sample=True with temperature=0"):
            resolve(file, **given)
    else:
        assert resolve(file, **given).sampling.temperature == want


LAYERED = {
    "top_k": (3, 5, 7),
    "top_p": (0.3, 0.5, 0.7),
    "min_p": (0.1, 0.2, 0.3),
    "repetition_penalty": (1.1, 1.2, 1.3),
}


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("layers", list(itertools.product((False, True), repeat=3)))
def test_a_keyword_wins_over_the_object_and_that_over_the_file(name, layers):
    values = [value if used else None for value, used in zip(LAYERED[name], layers)]
    keyword, in_config, in_file = values
    file = {} if in_file is None else {name: in_file}
    args = resolve(file, **{name: keyword}, generation_config=GenerationConfig(**{name: in_config}))
    default = getattr(SamplingParams(), name)
    assert getattr(args.sampling, name) == next((value for value in values if value is not None), default)


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id", "num_return_sequences", "stop_strings"])
def test_the_same_for_what_is_no_number(name):
    low, middle, high = ("a", "b", "c") if name == "stop_strings" else (2, 3, 4)
    wrap = {"eos_token_id": lambda x: frozenset([x]), "stop_strings": lambda x: (x,)}.get(name, lambda x: x)
    file, config = {name: low}, GenerationConfig(**{name: middle}, do_sample=True)
    assert getattr(resolve(file), name) == wrap(low)
    assert getattr(resolve(file, generation_config=config), name) == wrap(middle)
    assert getattr(resolve(file, generation_config=config, **{name: high}), name) == wrap(high)


def test_library_defaults_are_not_inherited():
    assert GenerationConfig().top_k in (None, 50)
    args = resolve(stated(GenerationConfig()), generation_config=GenerationConfig())
    assert args == resolve()


def test_greedy_drops_what_has_no_effect_and_keeps_the_penalty():
    args = resolve({"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}, do_sample=False)
    assert args.sampling == SamplingParams(0.0, repetition_penalty=1.1)


def test_the_draft_distribution():
    args = resolve(temperature=0.5, top_k=9, repetition_penalty=1.2, draft_temperature=0.8)
    assert args.draft_sampling == SamplingParams(0.8, 9)
    assert resolve(temperature=0.5, top_k=9).draft_sampling == SamplingParams(0.5, 9)
    assert resolve(temperature=0).draft_sampling.greedy


@pytest.mark.parametrize(
    ("given", "file", "want"),
    [
        ({}, {}, 512),
        ({"max_new_tokens": 7}, {}, 7),
        ({"max_length": 30}, {}, 20),
        ({"max_length": 30, "max_new_tokens": 7}, {}, 7),
        ({}, {"max_new_tokens": 9}, 9),
        ({}, {"max_length": 40}, 30),
        ({"max_length": 30}, {"max_new_tokens": 9}, 20),
        ({"max_new_tokens": 7}, {"max_length": 11}, 7),
        ({"generation_config": GenerationConfig(max_new_tokens=3)}, {"max_length": 40}, 3),
        ({"max_length": 30, "generation_config": GenerationConfig(max_new_tokens=3)}, {}, 3),
    ],
)
def test_limits_behind_a_prompt_of_ten(given, file, want):
    assert resolve(file, **given).new_tokens(10) == want


@pytest.mark.parametrize("limit", [10, 5])
def test_a_max_length_without_room(limit):
    with pytest.raises(ValueError, match=f"max_length={limit}: the prompt already has 10 tokens"):
        resolve(max_length=limit).new_tokens(10)


@pytest.mark.parametrize(
    "value", [3, [3], (3,), torch.tensor(3), torch.tensor([3]), torch.tensor([3], dtype=torch.int32)]
)
def test_token_ids_in_every_form(value):
    args = resolve(eos_token_id=value, pad_token_id=value)
    assert args.eos_token_id == {3} and args.pad_token_id == 3


def test_several_or_no_token_ids():
    assert (
        resolve(eos_token_id=[3, 5]).eos_token_id == resolve(eos_token_id=torch.tensor([5, 3])).eos_token_id == {3, 5}
    )
    assert resolve({"eos_token_id": 4}, eos_token_id=[]).eos_token_id == frozenset()
    assert resolve(eos_token_id=-1).eos_token_id == {-1}


def test_none_means_not_given_for_the_names_of_transformers():
    names = [
        name
        for name in GenerateArguments.__annotations__
        if name not in ("tree", "verifier", "nodes", "depth", "beta", "sharpness")
    ]
    assert resolve(**dict.fromkeys(names)) == resolve()
    assert resolve(num_beams=None, assistant_model=None, prefix_allowed_tokens_fn=None) == resolve()


NAN, INF = math.nan, math.inf
BAD = [
    *(("temperature", value, "temperature=.*: expected") for value in (-1, NAN, INF, "1", [1.0], True)),
    *(("top_p", value, "top_p=.*: expected") for value in (-0.1, 1.5, NAN, "0.9", True)),
    *(("min_p", value, "min_p=.*: expected") for value in (-0.1, 1.5, NAN, "0.9")),
    *(("top_k", value, "top_k=.*: expected") for value in (-1, 2.5, 2.0, "2", True, NAN)),
    *(("repetition_penalty", value, "repetition_penalty=.*: expected") for value in (0, -1, NAN, INF, "1")),
    *(("draft_temperature", value, "draft_temperature=.*: expected") for value in (-1, NAN, INF, "1")),
    *(("max_new_tokens", value, "max_new_tokens=.*: expected") for value in (0, -1, 2.5, "7", True)),
    *(("max_length", value, "max_length=.*: expected") for value in (0, -1, 2.5, "7")),
    *(("num_return_sequences", value, "num_return_sequences=.*: expected") for value in (0, 1.5, "2")),
    *(("nodes", value, "nodes=.*: expected") for value in (None, 0, -3, 2.5, "60", True, 100_000)),
    *(("depth", value, "depth=.*: expected") for value in (None, 0, 1.5, "3", 100_000)),
    *(("width", value, "width=.*: expected") for value in (0, 1.5, "3")),
    *(("beta", value, "beta=.*: expected") for value in (None, -0.1, 2, NAN, "0.5")),
    *(("sharpness", value, "sharpness=.*: expected") for value in (None, 0, -1, NAN, "0.5")),
    *(("tree", value, "tree=.*: expected") for value in (None, 3, "")),
    *(("verifier", value, "verifier=.*: expected") for value in (None, 3, "")),
    *(("eos_token_id", value, "eos_token_id=.*: expected") for value in ("3", 2.5, [2.5], ["3"], True, -2, {"a": 1})),
    *(("eos_token_id", torch.tensor(value), "eos_token_id=.*: expected") for value in (2.5, [[3]], [True])),
    *(("pad_token_id", value, "pad_token_id=.*: expected") for value in ("0", 1.5, [1, 2], [])),
    *(("stop_strings", value, "stop_strings=.*: expected") for value in (3, "", ["a", ""], ["a", 3])),
    *(("attention_mask", value, "attention_mask=.*: expected a torch.Tensor") for value in ([[1, 1]], 1, "1")),
    *(("generator", value, "generator=.*: expected a torch.*Generator") for value in (0, "0", [])),
    *(("seed", value, "seed=.*: expected") for value in (-1, 1.5, "0", 2**63, True)),
    *(("graphs", value, "graphs=.*: expected True or False") for value in (1, "yes")),
    *(("do_sample", value, "do_sample=.*: expected True or False") for value in (1, "yes")),
    *(("return_dict_in_generate", value, "return_dict_in_generate=.*: expected True or False") for value in (1, "yes")),
    *(("logits_processor", value, "logits_processor=.*: expected a list") for value in (print, [3], "x")),
    *(("stopping_criteria", value, "stopping_criteria=.*: expected a list") for value in (print, [3], "x")),
    *(("generation_config", value, "generation_config=.*: expected a tr") for value in ({"top_k": 1}, "x", 3)),
    ("temprature", 1.0, "no argument 'temprature'; did you mean 'temperature'?"),
    ("node", 8, "no argument 'node'; did you mean 'nodes'?"),
    ("draft_sampling", None, "no argument 'draft_sampling'"),
    ("input_id", 1, "did you mean 'input_ids'?"),
    ("num_beams", 4, "num_beams=4: not supported"),
    ("bad_words_ids", [[1]], "bad_words_ids=.*: not supported"),
    ("assistant_model", [], "assistant_model=.*: not supported"),
    ("generation_config", GenerationConfig(num_beams=4), "generation_config.num_beams=4: not supported"),
    ("generation_config", GenerationConfig(no_repeat_ngram_size=3), "no_repeat_ngram_size=3: not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}={value!r}"[:40] for name, value, _ in BAD])
def test_bad_values_are_named_in_one_line(name, value, message):
    with pytest.raises(ValueError, match=message) as found:
        resolve(**{name: value})
    assert "\n" not in str(found.value) and len(str(found.value)) < 300


def test_seed_and_generator_exclude_each_other():
    with pytest.raises(ValueError, match="both seed and generator"):
        resolve(seed=0, generator=torch.Generator())


def test_a_file_with_what_cannot_be_followed_warns():
    with pytest.warns(UserWarning, match="generation_config.json has no_repeat_ngram_size=3"):
        assert resolve({"no_repeat_ngram_size": 3, "bos_token_id": 1, "transformers_version": "5"}) == resolve()


def test_neutral_values_of_other_names_are_accepted():
    config = GenerationConfig(num_beams=1, use_cache=True, bos_token_id=1, output_scores=False, length_penalty=1.0)
    assert resolve(generation_config=config, num_beams=1, use_cache=True, typical_p=1.0) == resolve()


def test_lists_of_functions():
    args = resolve(logits_processor=LogitsProcessorList([max]), stopping_criteria=StoppingCriteriaList([min]))
    assert args.logits_processor == (max,) and args.stopping_criteria == (min,)


def test_the_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve().tree = "topk"
