"""Every field of OpenAI's two requests is honoured or refused by name. What a field does is seen in the answers."""

import typing

import pytest
import torch

from eagle import EagleModel
from eagle.serve.refusal import Refused
from eagle.serve.requests import ABSENT, CHAT, COMPLETION, read_chat, read_completion
from tests.eagle.serve.running import DRAFTING, PAIR

openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
KNOWN_TO_BE_ABSENT = {  # of OpenAI's own fields: refused as unknown names
    "audio", "metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning_effort", "safety_identifier", "verbosity", "web_search_options",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return EagleModel.from_pretrained(*PAIR)


def chat(model, **fields):
    return read_chat({"model": "demo", "messages": MESSAGES, **fields}, model, "demo", DRAFTING)


def completion(model, **fields):
    return read_completion({"model": "demo", "prompt": "2 + 3 =", **fields}, model, "demo", DRAFTING)


def continued(model, prepared) -> list[int]:
    """The new tokens of one prepared row."""
    *_, rows = model._run(prepared)
    return rows[0].new_tokens


@pytest.mark.parametrize(
    ("create", "known"),
    [(openai.resources.chat.Completions, CHAT), (openai.resources.Completions, COMPLETION)],
    ids=["chat", "completions"],
)
def test_openai_s_client_has_no_field_that_nobody_decided_about(create, known):
    """Against the installed client's own list of arguments."""
    fields = {"extra_headers", "extra_query", "extra_body", "timeout", "self"}
    names = set(typing.get_type_hints(create.create).keys()) - fields - {"return"}
    assert names - known - set(ABSENT) - KNOWN_TO_BE_ABSENT == set()


@pytest.mark.parametrize("name", [*ABSENT, *sorted(KNOWN_TO_BE_ABSENT), "verifer", "tree"])
def test_what_is_not_there_is_refused_by_name(model, name):
    for read in (chat, completion):
        with pytest.raises(Refused, match=name) as refused:
            read(model, **{name: {"anything": 1}})
        assert (refused.value.status, refused.value.param) == (400, name)
        assert len(str(refused.value).split()) > 4


def test_neutral_values_and_nulls_ask_for_nothing(model):
    for name, (values, _) in ABSENT.items():
        for value in (*values, None):
            assert chat(model, **{name: value}).choices == 1
    with pytest.raises(Refused, match="'verifer' is no field"):
        chat(model, verifer=None)


BAD = {
    "temperature": (-1, 2.5, "hot", True),
    "top_p": (-0.1, 1.5, "x"),
    "top_k": (-2, 1.5, "x"),
    "min_p": (-0.1, 2),
    "repetition_penalty": (0, 1e-30, 1e9),
    "presence_penalty": (-3, 2.5, "x"),
    "frequency_penalty": (-3, 2.5),
    "seed": (1.5, "x", 2**70),
    "n": (0, 17, 1.5),
    "max_tokens": (0, -1, "many", 1.5),
    "stop": (5, [""], ["a"] * 20, [5], "a\ud83d"),
    "stream": (1, "yes"),
    "user": (5,),
    "logit_bias": ([], {"x": 1}, {"-1": 1}, {"999999": 1}, {"5": 101}, {"5": "x"}),
    "stream_options": ({"include_usage": True},),
    "return_token_ids": (1, "yes"),
    "stop_token_ids": (5, "x", [-1], [999999], ["x"]),
}


@pytest.mark.parametrize("name", BAD)
def test_values_out_of_range_are_refused(model, name):
    for value in BAD[name]:
        for read in (chat, completion):
            if value == []:
                continue
            with pytest.raises(ValueError, match=name):
                read(model, **{name: value})


def test_fields_of_one_route_only(model):
    for fields in ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": 3}, {"echo": True}):
        with pytest.raises(ValueError, match=next(iter(fields)).split("=")[0]):
            chat(model, **fields)
    for fields in ({"logprobs": 6}, {"logprobs": True}, {"max_completion_tokens": 3}, {"messages": MESSAGES}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            completion(model, **fields)
    with pytest.raises(Refused, match="echo with logprobs"):
        completion(model, echo=True, logprobs=1)


def test_limits(model):
    prompt = chat(model).prepared[0].prompts[0]
    assert chat(model).prepared[0].stopping.max_new_tokens == model.context_length - len(prompt)
    assert chat(model, max_tokens=7).prepared[0].stopping.max_new_tokens == 7
    assert chat(model, max_completion_tokens=7).prepared[0].stopping.max_new_tokens == 7
    assert chat(model, max_tokens=7, max_completion_tokens=7).prepared[0].stopping.max_new_tokens == 7
    assert chat(model, max_tokens=10**9).prepared[0].stopping.max_new_tokens == model.context_length - len(prompt)
    with pytest.raises(Refused, match="differ"):
        chat(model, max_tokens=7, max_completion_tokens=8)
    with pytest.raises(ValueError, match="no room for a new token"):
        completion(model, prompt=[5] * model.context_length)


def test_sampling_fields_reach_the_distribution(model):
    sampling = chat(model, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2).prepared[0].sampling
    target = sampling.target
    assert (target.temperature, target.top_p, target.top_k) == (0.5, 0.9, 7)
    assert (target.min_p, target.repetition_penalty) == (0.1, 1.2)
    assert chat(model, top_k=-1).prepared[0].sampling.target.top_k == 0
    assert chat(model, temperature=0).prepared[0].plan.greedy
    assert not chat(model).prepared[0].plan.greedy


def test_stop_tokens_come_beside_the_models(model):
    assert chat(model, stop_token_ids=[7, 9]).prepared[0].stopping.eos == {*model.eos_ids(), 7, 9}


def test_token_ids_are_not_streamed(model):
    assert chat(model, return_token_ids=True).token_ids
    with pytest.raises(Refused, match="without stream only"):
        chat(model, return_token_ids=True, stream=True)


def test_a_seed_repeats_and_none_differs(model):
    assert chat(model, seed=5).prepared[0].seed == chat(model, seed=5).prepared[0].seed
    assert chat(model, seed=-5).prepared[0].seed >= 0
    assert chat(model).prepared[0].seed != chat(model).prepared[0].seed
    tokens = [continued(model, chat(model, seed=seed, max_tokens=12).prepared[0]) for seed in (5, 5, 6)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_biases_ban_and_force(model):
    plain = continued(model, completion(model, temperature=0, max_tokens=8).prepared[0])
    banned = continued(
        model, completion(model, temperature=0, max_tokens=8, logit_bias={str(plain[0]): -100}).prepared[0]
    )
    assert plain[0] not in banned
    forced = continued(model, completion(model, temperature=1, max_tokens=4, logit_bias={"77": 100}).prepared[0])
    assert forced == [77] * 4


@pytest.mark.parametrize("tree", ["none", "topk"])
@pytest.mark.parametrize("fields", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.7, "presence_penalty": -0.2}])
def test_penalties_count_generated_tokens(model, fields, tree):
    """Against a loop over the stock model with OpenAI's formula; the prompt does not count."""
    drafting = {"tree": tree} if tree == "none" else {"tree": tree, "nodes": 8, "depth": 3}
    body = {"prompt": "one two one two one", "temperature": 0, "max_tokens": 20, **fields}
    found = continued(model, read_completion(body, model, "demo", drafting).prepared[0])
    prompt = model.tokenizer(body["prompt"]).input_ids
    new: list[int] = []
    for _ in found:
        scores = model.target.model(torch.tensor([prompt + new])).logits[0, -1].clone()
        for token in set(new):
            scores[token] -= fields.get("frequency_penalty", 0) * new.count(token) + fields["presence_penalty"]
        new.append(int(scores.argmax()))
    assert found == new


def test_prompts(model):
    text, several = completion(model), completion(model, prompt=["a", "b"], n=2)
    assert [len(one.prompts) for one in several.prepared] == [1, 1] and several.choices == 2
    assert completion(model, prompt=text.prepared[0].prompts[0]).prepared[0].prompts == text.prepared[0].prompts
    assert len(completion(model, prompt=[[5, 6], [7]]).prepared) == 2
    assert completion(model, echo=True).echoes == ["2 + 3 ="]
    for bad in (None, "", [], [[]], [-1], [10**9], [1.5], {"a": 1}, ["a"] * 17, ["a", 5]):
        with pytest.raises(ValueError, match="prompt"):
            completion(model, prompt=bad)


def test_another_model(model):
    with pytest.raises(Refused, match="'gpt-5' is not here") as refused:
        read_chat({"model": "gpt-5", "messages": MESSAGES}, model, "demo", DRAFTING)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_the_rest(model):
    asked = chat(model, stream=True, stream_options={"include_usage": True}, stop=["a", "b"], user="Ann", n=3)
    assert (asked.stream, asked.usage_chunk, asked.stop, asked.user, asked.choices) == (
        True,
        True,
        ("a", "b"),
        "Ann",
        3,
    )
    assert chat(model, logprobs=True, top_logprobs=4).logprobs == 4
    assert chat(model, logprobs=True).logprobs == 0
    assert chat(model, logprobs=False).logprobs is None
    assert completion(model, logprobs=2).logprobs == 2
    for body in (5, [], "x"):
        with pytest.raises(Refused, match="JSON object"):
            read_chat(body, model, "demo", DRAFTING)


ODD = [
    True,
    False,
    0,
    -1,
    1.5,
    float("inf"),
    float("nan"),
    10**30,
    "",
    "x",
    "1",
    [],
    {},
    [[]],
    [None],
    [1],
    [1.5],
    [True],
]
ODD += [
    {"a": None},
    [{}],
    [{"role": []}],
    [{"role": "user", "content": {}}],
    {"include_usage": 1},
    {"1": True},
    "\ud83d",
]


@pytest.mark.parametrize("name", sorted({*CHAT, *COMPLETION, *ABSENT} - {"model"}))
def test_odd_values_are_answered_or_refused_and_nothing_else(model, name):
    for value in ODD:
        for read in (read_chat, read_completion):
            body = {"prompt": "x"} if read is read_completion else {"messages": MESSAGES}
            try:
                assert read({**body, name: value}, model, "demo", DRAFTING).prepared
            except ValueError as error:
                assert str(error)  # noqa: PT017  any of them may be taken
