"""OpenAI's forms of an answer: choices, chunks, log-probabilities, usage."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from eagle.serve.logprobs import TokenLogprob
from eagle.serve.scheduler import Job

TextOf = Callable[[int], str]


class Route(NamedTuple):
    """What differs between the two routes: names of objects, and how a choice says its text."""

    kind: str
    chunk: str
    prefix: str
    choice: Callable[[str, Any], dict[str, Any]]
    piece: Callable[[str, Any], dict[str, Any]]
    logprobs: Callable[[Sequence[TokenLogprob], TextOf, int], dict[str, Any]]


def usage(jobs: Sequence[Job], choices: int) -> dict[str, Any]:
    """Counts of a request's tokens; a prompt counts once for all its `choices`. A draft token was accepted or rejected
    when the target had scored it.
    """
    rows = [job.row for job in jobs if job.row is not None]
    steps = [step for row in rows for step in row.steps]
    prompts = sum(len(job.prepared.prompts[0]) for job in jobs[::choices])
    tokens = sum(job.tokens for job in jobs)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": tokens,
        "total_tokens": prompts + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(row.reused_tokens for row in rows[::choices])},
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(step.accepted for step in steps),
            "rejected_prediction_tokens": sum(step.nodes - 1 - step.accepted for step in steps),
            "reasoning_tokens": 0,
        },
    }


def _chat_logprobs(found: Sequence[TokenLogprob], text_of: TextOf, _: int) -> dict[str, Any]:
    content = [
        {**_token(one.token, one.logprob, text_of), "top_logprobs": [_token(*pair, text_of) for pair in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def _token(token: int, logprob: float, text_of: TextOf) -> dict[str, Any]:
    """Bytes are those of the text: none for a piece of a character, whose text is the replacement character."""
    text = text_of(token)
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _completion_logprobs(found: Sequence[TokenLogprob], text_of: TextOf, offset: int) -> dict[str, Any]:
    """`offset`: characters of the answer before these tokens."""
    offsets = []
    for one in found:
        offsets.append(offset)
        offset += len(text_of(one.token))
    return {
        "tokens": [text_of(one.token) for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [{text_of(token): value for token, value in reversed(one.top)} for one in found],
        "text_offset": offsets,
    }


CHAT = Route(
    "chat.completion",
    "chat.completion.chunk",
    "chatcmpl",
    lambda text, logprobs: {
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": logprobs,
    },
    lambda text, logprobs: {"delta": {"content": text} if text else {}, "logprobs": logprobs},
    _chat_logprobs,
)
COMPLETION = Route(
    "text_completion",
    "text_completion",
    "cmpl",
    lambda text, logprobs: {"text": text, "logprobs": logprobs},
    lambda text, logprobs: {"text": text, "logprobs": logprobs},
    _completion_logprobs,
)
