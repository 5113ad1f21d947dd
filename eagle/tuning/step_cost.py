"""Tokens per second by draft-token budget, measured: acceptance length over the seconds of a step.

    points = measure(model, temperature=1.0)      one Point per candidate (nodes, depth)
    best = choose(points)                         Point with .nodes and .depth

A larger tree accepts more and takes longer; where the optimum lies depends on the machine, the pair and the sampling
settings. The candidates alternate prompt by prompt, so that a drift of the machine reaches all of them alike. The
acceptance length is 1 + mean E[accepted] over all steps, the cost the median wall seconds of a step. One node is plain
decoding; where it is the fastest, it is chosen, so that drafting never makes a model slower.

Two measurements can choose differently; keep the choice where a result has to be repeatable.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from eagle.model.outputs import StepRecord

PLAIN = (1, 1)
CANDIDATES = (PLAIN, (5, 3), (7, 6), (9, 4), (9, 6), (13, 5), (16, 6), (21, 5), (32, 6), (60, 7))
PROMPTS = (
    "A gardener plants 6 rows of 14 tulips and gives 19 of them away. How many tulips are left?",
    "Explain in three sentences why the sky looks blue during the day and red in the evening.",
    "Write a short letter that invites a friend to a picnic by the lake next Sunday.",
    "List four ways to save electricity at home and say what each of them costs.",
)


class Point(NamedTuple):
    """One budget: rows scored per step, longest draft, 1 + mean E[accepted], median milliseconds, tokens per second."""

    nodes: int
    depth: int
    tau: float
    step_ms: float
    tokens_per_second: float


def choose(points: Sequence[Point]) -> Point:
    """The budget with most tokens per second; of equals the smallest. 1 node means plain decoding.

    Raises ValueError without a point.
    """
    if not points:
        raise ValueError("no budget was measured: expected at least one point")
    return max(points, key=lambda point: (point.tokens_per_second, -point.nodes))


def summarise(nodes: int, depth: int, steps: Sequence[StepRecord]) -> Point:
    """The point of one budget. Steps cut by the end of an answer count with what they would have emitted.

    Raises ValueError without a step.
    """
    if not steps:
        raise ValueError(
            f"no step was measured with {nodes} nodes: every answer ended with its first token; pass other prompts"
        )
    tau = 1 + statistics.fmean(step.expected_accepted for step in steps)
    seconds = statistics.median(sum(step.seconds.values()) for step in steps)
    return Point(nodes, depth, tau, 1e3 * seconds, tau / seconds)


def bundled_prompts(tokenizer: Any) -> list[list[int]]:
    """Token ids of `PROMPTS`, each as a user message in the tokenizer's chat template where it has one.

    Raises ValueError without a tokenizer.
    """
    if tokenizer is None:
        raise ValueError("the model was made without a tokenizer: pass the prompts as token ids")
    if not getattr(tokenizer, "chat_template", None):
        return [tokenizer(text)["input_ids"] for text in PROMPTS]
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def measure(
    model: Any,
    prompts: Sequence[Sequence[int]] | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    tree: str = "hybrid",
    verifier: str = "hsd",
    max_new_tokens: int = 48,
    candidates: Sequence[tuple[int, int]] = CANDIDATES,
    seed: int = 0,
) -> list[Point]:
    """One point per candidate (nodes, depth), for the model with its drafter under these sampling settings.

    model       an `eagle.EagleModel` with a drafter; nothing but its `stream`, `device` and `tokenizer` is used
    prompts     token ids per prompt; None: `bundled_prompts`. The first is answered twice, once to warm up
    seed        prompt i is answered with seed + i, whatever the budget

    Raises ValueError for an empty list of prompts or candidates, or where no step was made.
    """
    rows = bundled_prompts(model.tokenizer) if prompts is None else [list(prompt) for prompt in prompts]
    if not rows or not candidates:
        raise ValueError(f"{len(rows)} prompts, {len(candidates)} candidates: expected at least one of each")
    steps: dict[tuple[int, int], list[StepRecord]] = {candidate: [] for candidate in candidates}
    for index, row in enumerate([rows[0], *rows]):  # index 0 warms up
        for nodes, depth in candidates:
            *_, finished = model.stream(
                torch.tensor([row], device=model.device),
                max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                tree="none" if (nodes, depth) == PLAIN else tree,
                verifier=verifier,
                nodes=nodes,
                depth=depth,
                generator=torch.Generator(device=model.device).manual_seed(seed + index),
            )
            if index:
                steps[nodes, depth] += finished[0].steps
    return [summarise(nodes, depth, found) for (nodes, depth), found in steps.items()]
