"""OpenAI's two requests: every field is honoured or refused by name, none is ignored.

asked = read_chat(body, model, drafting)            or read_completion
asked.prepared                                      one `Prepared` per prompt
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from eagle.api.arguments import flag, integer, number
from eagle.api.eagle_model import EagleModel, Prepared
from eagle.files import parse_json
from eagle.serve.messages import chat_tokens, check_keywords, check_messages, check_text
from eagle.serve.processors import Bias, CountPenalty
from eagle.serve.refusal import Refused

MAX_CHOICES, MAX_STOPS, MAX_PROMPTS = 16, 16, 16
MAX_TEMPERATURE = 2.0
MAX_SEED = 2**63 - 1

SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"}
PENALTIES = {"presence_penalty", "frequency_penalty", "logit_bias"}
TOKENS = {"return_token_ids", "stop_token_ids"}  # as vLLM has them
ANSWER = {"n", "max_tokens", "stop", "stream", "stream_options", "logprobs"}
SHARED = {"model", "user", *ANSWER, *TOKENS, *SAMPLING, *PENALTIES}
CHAT = {*SHARED, "messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"}
COMPLETION = {*SHARED, "prompt", "echo"}

# Fields whose function is missing here: the values at which they ask for nothing (null always does), and the sentence.
NO_FORM = "this server does not constrain the form of answers: ask for it in a message"
NO_TOOLS = "this server calls no tools: describe them in a message, and parse the answer"
ABSENT: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), NO_TOOLS),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "parallel_tool_calls": ((True, False), NO_TOOLS),
    "functions": (([],), NO_TOOLS),
    "function_call": (("none", "auto"), NO_TOOLS),
    "response_format": (({"type": "text"},), NO_FORM),
    "modalities": ((["text"],), "this server answers with text"),
    "best_of": ((1,), "this server ranks no answers: ask for n of them"),
    "suffix": (("",), "this server continues texts; it fills no gaps"),
    "store": ((False,), "this server stores nothing"),
    "service_tier": (("auto", "default"), "this server has one tier"),
}


@dataclass
class Asked:
    """A checked request.

    prepared     one per prompt
    echoes       texts that stand before the answers, one per prompt
    choices      answers to each prompt
    logprobs     how many of the likeliest tokens are listed; None: no log-probabilities
    token_ids    whether choices hold the answers' token ids, end token included
    user         goes to the request log
    """

    prepared: list[Prepared]
    echoes: list[str] = field(default_factory=list)
    choices: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage_chunk: bool = False
    logprobs: int | None = None
    token_ids: bool = False
    user: str = ""


def json_of(body: bytes) -> Any:
    """The JSON value of a body. Raises Refused."""
    try:
        return parse_json(body)
    except ValueError as error:
        raise Refused(f"the request is no JSON: {error}") from error


def read_chat(
    body: Any, model: EagleModel, name: str, drafting: Mapping[str, Any], template: Mapping[str, Any] | None = None
) -> Asked:
    """A request for /v1/chat/completions. `template`: variables of the chat template that the server was started with.

    Raises ValueError naming the field, its value and what was expected.
    """
    given = _fields(body, CHAT, name)
    messages = check_messages(given.get("messages"))
    keywords = check_keywords(model.tokenizer, given.get("chat_template_kwargs", {}))
    prompt = chat_tokens(model.tokenizer, messages, {**(template or {}), **keywords})
    asked = Asked([prepare(model, prompt, given, _max_tokens(given), drafting)], logprobs=_chat_logprobs(given))
    return _shared(asked, given)


def read_completion(
    body: Any,
    model: EagleModel,
    name: str,
    drafting: Mapping[str, Any],
    template: Mapping[str, Any] | None = None,  # noqa: ARG001  as `read_chat`; a plain text goes through no template
) -> Asked:
    """A request for /v1/completions. Raises ValueError naming the field, its value and what was expected."""
    given = _fields(body, COMPLETION, name)
    prompts = _prompts(given.get("prompt"), model)
    prepared = [prepare(model, prompt, given, _max_tokens(given), drafting) for prompt in prompts]
    asked = Asked(prepared, logprobs=integer("logprobs", given["logprobs"], 0, 5) if "logprobs" in given else None)
    if flag("echo", given.get("echo", False)):
        if asked.logprobs is not None:
            raise Refused("echo with logprobs: this server has none for the prompt; leave one of them out", "echo")
        texts = [given["prompt"]] if isinstance(given["prompt"], str) else given["prompt"]
        asked.echoes = [
            text if isinstance(text, str) else model.tokenizer.decode(prompt) for text, prompt in zip(texts, prompts)
        ]
    return _shared(asked, given)


def prepare(
    model: EagleModel,
    prompt: Sequence[int],
    given: Mapping[str, Any],
    max_tokens: int | None,
    drafting: Mapping[str, Any],
) -> Prepared:
    """`EagleModel.prepare` of one prompt with a request's sampling fields; the limit is what the context leaves."""
    left = max(model.context_length - len(prompt), 1)
    arguments: dict[str, Any] = {name: given[name] for name in SAMPLING & given.keys()}
    if "temperature" in arguments:
        number("temperature", arguments["temperature"], 0, MAX_TEMPERATURE)
    if arguments.get("top_k") == -1:
        arguments["top_k"] = 0
    if "repetition_penalty" in arguments:
        number("repetition_penalty", arguments["repetition_penalty"], 0.01, 100)
    arguments["seed"] = _seed(arguments.get("seed"))
    arguments["max_new_tokens"] = min(left, left if max_tokens is None else max_tokens)
    arguments["num_return_sequences"] = 1
    if "stop_token_ids" in given:
        arguments["eos_token_id"] = [*model.eos_ids(), *_stop_tokens(given["stop_token_ids"], model)]
    arguments["logits_processor"] = _processors(given, len(prompt), model.target.vocab_size)
    ids = torch.tensor([list(prompt)], dtype=torch.int64)
    return model.prepare(ids, {**drafting, **arguments})


def _seed(given: Any) -> int:
    """A given seed, which may be negative, else one that nobody knows."""
    if given is None:
        return int.from_bytes(secrets.token_bytes(8)) >> 1
    return integer("seed", given, -MAX_SEED - 1, MAX_SEED) % (MAX_SEED + 1)


def _fields(body: Any, known: set[str], name: str) -> dict[str, Any]:
    """The fields that were given; null is "not given"."""
    if not isinstance(body, dict):
        raise Refused(f"expected a JSON object, found {type(body).__name__}")
    for one, value in body.items():
        if one in known:
            continue
        if one not in ABSENT:
            raise Refused(f"{one!r} is no field of this request; leave it out", one)
        neutral, why = ABSENT[one]
        if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
            raise Refused(f"{one}: {why}", one)
    given = {one: value for one, value in body.items() if value is not None and one in known}
    if given.get("model", name) != name:
        raise Refused(
            f"the model {given['model']!r} is not here; this server has {name!r}", "model", 404, "model_not_found"
        )
    return given


def _shared(asked: Asked, given: Mapping[str, Any]) -> Asked:
    asked.choices = integer("n", given.get("n", 1), 1, MAX_CHOICES)
    asked.stop = _stops(given.get("stop", ()))
    asked.stream = flag("stream", given.get("stream", False))
    asked.token_ids = flag("return_token_ids", given.get("return_token_ids", False))
    if asked.token_ids and asked.stream:
        raise Refused("return_token_ids: this server has them without stream only; leave one of them out", "stream")
    asked.usage_chunk = _usage_chunk(given.get("stream_options"), asked.stream)
    asked.user = check_text(given.get("user", ""), "user")[:64]
    return asked


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    names = [name for name in ("max_tokens", "max_completion_tokens") if name in given]
    values = {integer(name, given[name], 1) for name in names}
    if len(values) > 1:
        raise Refused("max_tokens and max_completion_tokens differ: give one of them", "max_completion_tokens")
    return values.pop() if values else None


def _stops(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or len(found) > MAX_STOPS:
        raise Refused(f"stop: expected a text or a list of at most {MAX_STOPS}", "stop")
    for text in found:
        if not check_text(text, "stop"):
            raise Refused("stop: expected texts that are not empty", "stop")
    return tuple(found)


def _stop_tokens(value: Any, model: EagleModel) -> list[int]:
    if not isinstance(value, list):
        raise Refused(f"stop_token_ids: expected a list of token ids, found {type(value).__name__}", "stop_token_ids")
    return [integer("stop_token_ids", token, 0, model.target.vocab_size - 1) for token in value]


def _usage_chunk(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise Refused("stream_options: allowed with stream=true only", "stream_options")
    options = _object("stream_options", value)
    unknown = sorted(options.keys() - {"include_usage"})
    if unknown:
        raise Refused(f"stream_options.{unknown[0]} is not known; expected include_usage", "stream_options")
    return flag("stream_options.include_usage", options.get("include_usage", False))


def _chat_logprobs(given: Mapping[str, Any]) -> int | None:
    asked = flag("logprobs", given.get("logprobs", False))
    top = integer("top_logprobs", given.get("top_logprobs", 0), 0, 20)
    if "top_logprobs" in given and not asked:
        raise Refused("top_logprobs: needs logprobs=true", "top_logprobs")
    return top if asked else None


def _prompts(prompt: Any, model: EagleModel) -> list[list[int]]:
    """A text, token ids, or a list of either."""
    several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
    found = [_prompt(one, model) for one in (prompt if several else [prompt])]
    if len(found) > MAX_PROMPTS:
        raise Refused(f"prompt: {len(found)} prompts are more than {MAX_PROMPTS}; send several requests", "prompt")
    return found


def _prompt(prompt: Any, model: EagleModel) -> list[int]:
    if isinstance(prompt, list):
        tokens = [integer("prompt", token, 0, model.target.vocab_size - 1) for token in prompt]
    else:
        tokens = list(model.tokenizer(check_text(prompt, "prompt"))["input_ids"])
    if not tokens:
        raise Refused("prompt: expected a text or token ids, not empty", "prompt")
    return tokens


def _processors(given: Mapping[str, Any], prompt: int, vocabulary: int) -> list[Callable[..., Any]]:
    presence, frequency = (
        number(name, given.get(name, 0.0), -2, 2) for name in ("presence_penalty", "frequency_penalty")
    )
    bias = _bias(given.get("logit_bias") or {}, vocabulary)
    penalties: list[Callable[..., Any]] = [CountPenalty(presence, frequency, prompt)] if presence or frequency else []
    return [*penalties, Bias(bias)] if bias else penalties


def _bias(value: Any, vocabulary: int) -> dict[int, float]:
    found = {}
    for token, bias in _object("logit_bias", value).items():
        if not (token.isascii() and token.isdigit() and int(token) < vocabulary):
            raise Refused(f"logit_bias: expected token ids in 0 .. {vocabulary - 1}, found {token!r}", "logit_bias")
        found[int(token)] = number(f"logit_bias.{token}", bias, -100, 100)
    return found


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{name}: expected an object, found {type(value).__name__}", name)
    return value
