"""The steps of an answer with their draft trees, as lines of JSON: what the page reads from POST /steps.

    {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "tree": "hybrid", "verifier": "hsd", "max_tokens": 64}

Optional: temperature, top_p, top_k, max_tokens, tree, verifier, nodes, depth, seed, and trees (false leaves the trees
out, so that steps may run as CUDA graphs). The answer is one event per line:

    queued    ahead: requests that are answered before this one
    step      index (0: the prompt's forward, which has no tree), text, tokens (emitted so far), and from index 1 on
              accepted, emitted, expected_accepted, nodes, seconds by phase, tree (see `tree_columns`)
    end       finish ("stop" or "length"), tokens, prompt_tokens, reused_tokens, prefill_seconds, rate (tokens per
              second of the steps alone: the prompt, trees and their way to the reader are not counted)
    error     message
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow, TreeRecord
from eagle.serve.options import LOSSLESS
from eagle.serve.prompts import chat_tokens, check_messages
from eagle.serve.text import TextStep, stream_text
from eagle.trees import TREES

ARGUMENTS = {  # of a request: keywords of `EagleModel.stream`
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_new_tokens",
    "tree": "tree",
    "verifier": "verifier",
    "nodes": "nodes",
    "depth": "depth",
    "seed": "seed",
    "trees": "record_trees",
}
CHOICES = {"tree": list(TREES), "verifier": LOSSLESS}
MAX_TOKENS = 256  # where a request does not say


def open_steps(model: EagleModel, request: Any, drafting: Mapping[str, Any]) -> Iterator[TextStep]:
    """The steps of one request; nothing is computed yet. `drafting`: keywords of `EagleModel.stream` it starts from.

    Raises ValueError naming what is wrong with the request.
    """
    if not isinstance(request, dict):
        raise ValueError("expected a JSON object with messages")
    unknown = sorted(request.keys() - ARGUMENTS.keys() - {"messages"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not known; expected messages and optionally {', '.join(ARGUMENTS)}")
    check_messages(request.get("messages"))
    if not all(isinstance(message["content"], str) for message in request["messages"]):
        raise ValueError("every message's content must be a text")
    given = {ARGUMENTS[name]: value for name, value in request.items() if name in ARGUMENTS and value is not None}
    for name, names in CHOICES.items():
        if name in given and given[name] not in names:
            raise ValueError(f"{name}={given[name]!r}: expected one of {', '.join(names)}")
    prompt = chat_tokens(model.tokenizer, request["messages"])
    arguments = {"max_new_tokens": MAX_TOKENS, "record_trees": True, "reuse_cache": True, **drafting, **given}
    return stream_text(model, prompt, **arguments)


def tree_columns(tree: TreeRecord, text_of: Callable[[int], str]) -> dict[str, Any]:
    """`eagle.api.outputs.TreeRecord` by columns, tokens as text and numbers to four digits."""
    rounded = {name: [float(f"{value:.4g}") for value in getattr(tree, name)] for name in ("p", "q", "d", "stop")}
    return {
        "text": [text_of(token) for token in tree.tokens],
        "parent": tree.parents,
        "sampled": [int(sampled) for sampled in tree.sampled],
        **rounded,
        "path": tree.path,
        "bonus": text_of(tree.bonus),
    }


def step_events(step: TextStep, text_of: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """The event of a step, and the last one behind the last step."""
    row = step.row
    event: dict[str, Any] = {"event": "step", "index": len(row.steps), "text": step.text, "tokens": len(row.new_tokens)}
    if row.steps:
        record = row.steps[-1]
        event |= {
            "accepted": record.accepted,
            "emitted": record.emitted,
            "expected_accepted": float(f"{record.expected_accepted:.4g}"),
            "nodes": record.nodes,
            "seconds": {phase: float(f"{seconds:.4g}") for phase, seconds in record.seconds.items()},
            "tree": tree_columns(row.trees[-1], text_of) if row.trees else None,
        }
        row.trees.clear()  # sent
    yield event
    if step.finish:
        yield {
            "event": "end",
            "finish": step.finish,
            "tokens": len(row.new_tokens),
            "prompt_tokens": row.prompt_tokens,
            "reused_tokens": row.reused_tokens,
            "prefill_seconds": float(f"{row.prefill_seconds:.4g}"),
            "rate": float(f"{steps_rate(row):.4g}"),
        }


def steps_rate(row: GeneratedRow) -> float:
    """Tokens per second of the steps alone; 0 where there was none."""
    seconds = sum(sum(step.seconds.values()) for step in row.steps)
    return sum(step.emitted for step in row.steps) / seconds if seconds else 0.0
