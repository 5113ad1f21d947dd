"""The steps of an answer with their draft trees, as lines of JSON: what the page reads from POST /steps.

    {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "tree": "hybrid", "verifier": "hsd", "max_tokens": 64}

Optional: temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, tree ("auto" too), verifier, nodes,
depth, and trees (false leaves the trees out, so that steps may run as CUDA graphs). The answer is one event per line:

    begin     tree, nodes, depth: how it is drafted; ahead: rows that run or wait before this one
    step      index (0: the prompt's forward, which has no tree), text, tokens (emitted so far), and from index 1 on
              accepted, emitted, expected_accepted, nodes, seconds by phase, tree (see `tree_columns`)
    end       finish ("stop" or "length"), tokens, prompt_tokens, reused_tokens, prefill_seconds, rate (tokens per
              second of the steps alone: the prompt, trees and their way to the reader are not counted)
    error     message
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from eagle.api.arguments import flag, integer
from eagle.api.eagle_model import EagleModel
from eagle.api.outputs import GeneratedRow, TreeRecord
from eagle.serve.answers import Answers, Numbered
from eagle.serve.messages import chat_tokens, check_messages
from eagle.serve.options import check_names
from eagle.serve.refusal import Refused
from eagle.serve.requests import SAMPLING, Asked, prepare
from eagle.serve.scheduler import Job, Update

DRAFTING = ("tree", "verifier", "nodes", "depth")
FIELDS = (*sorted(SAMPLING), "max_tokens", *DRAFTING, "trees")


def read_steps(
    body: Any, model: EagleModel, drafting: Mapping[str, Any], template: Mapping[str, Any] | None = None
) -> Asked:
    """One request. `drafting`: keywords of `EagleModel.generate` it starts from, unless it names a tree.

    Raises ValueError naming what is wrong with it.
    """
    if not isinstance(body, dict):
        raise Refused("expected a JSON object with messages")
    unknown = sorted(body.keys() - {*FIELDS, "messages"})
    if unknown:
        raise Refused(f"{unknown[0]!r} is not known; expected messages and optionally {', '.join(FIELDS)}", unknown[0])
    given = {name: value for name, value in body.items() if value is not None}
    check_names(given)
    prompt = chat_tokens(model.tokenizer, check_messages(given.get("messages")), template)
    limit = integer("max_tokens", given["max_tokens"], 1) if "max_tokens" in given else None
    own = {name: given[name] for name in DRAFTING if name in given}
    start = {} if "tree" in own else drafting
    trees = flag("trees", given.get("trees", True))
    return Asked([prepare(model, prompt, given, limit, {**start, **own, "record_trees": trees})], stream=True)


async def events_of(
    answers: Answers, updates: AsyncIterator[Numbered], text_of: Callable[[int], str]
) -> AsyncIterator[dict[str, Any]]:
    """The events of one job."""
    [job] = answers.jobs
    plan = job.prepared.plan
    kind = plan.tree if plan.builder else "none"
    yield {"event": "begin", "tree": kind, "nodes": plan.nodes, "depth": plan.depth, "ahead": answers.ahead}
    index, tokens = 0, 0
    async for _, update in updates:
        if update.error:
            yield {"event": "error", "message": update.error}
            return
        tokens += len(update.tokens)
        yield step_event(update, index, tokens, text_of)
        index += 1
    yield end_event(job, update.finish)


def step_event(update: Update, index: int, tokens: int, text_of: Callable[[int], str]) -> dict[str, Any]:
    """The event of one step. `index`: its number; `tokens`: emitted so far."""
    event: dict[str, Any] = {"event": "step", "index": index, "text": update.text, "tokens": tokens}
    record = update.step
    if record is not None:
        event |= {
            "accepted": record.accepted,
            "emitted": record.emitted,
            "expected_accepted": rounded(record.expected_accepted),
            "nodes": record.nodes,
            "seconds": {phase: rounded(seconds) for phase, seconds in record.seconds.items()},
            "tree": None if update.tree is None else tree_columns(update.tree, text_of),
        }
    return event


def tree_columns(tree: TreeRecord, text_of: Callable[[int], str]) -> dict[str, Any]:
    """`eagle.api.outputs.TreeRecord` by columns, tokens as text and numbers to four digits."""
    numbers = {name: [rounded(value) for value in getattr(tree, name)] for name in ("p", "q", "d", "stop")}
    return {
        "text": [text_of(token) for token in tree.tokens],
        "parent": tree.parents,
        "sampled": [int(sampled) for sampled in tree.sampled],
        **numbers,
        "path": tree.path,
        "bonus": text_of(tree.bonus),
    }


def end_event(job: Job, finish: str) -> dict[str, Any]:
    """The last event."""
    row = job.row
    assert row is not None
    return {
        "event": "end",
        "finish": finish,
        "tokens": job.tokens,
        "prompt_tokens": row.prompt_tokens,
        "reused_tokens": row.reused_tokens,
        "prefill_seconds": rounded(row.prefill_seconds),
        "rate": rounded(steps_rate(row)),
    }


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def steps_rate(row: GeneratedRow) -> float:
    """Tokens per second of the steps alone; 0 where there was none."""
    seconds = sum(sum(step.seconds.values()) for step in row.steps)
    return sum(step.emitted for step in row.steps) / seconds if seconds else 0.0
