"""From prompts to finished rows: run steps until every row has ended, and keep the record of each step."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eagle.api.outputs import GeneratedRow, StepRecord, TreeRecord
from eagle.drafters import Drafter
from eagle.engine.graphs import GraphRunner
from eagle.engine.plan import Plan
from eagle.engine.records import TreeRecorder
from eagle.engine.sequence import DecodingState
from eagle.engine.step import Decoder, StepResult, check_finite
from eagle.nn.target import CachedLM

REPLACED = (
    "the drafter gave a distribution that is not finite; it was replaced by the uniform one, so the tokens are still "
    "distributed exactly as the target's, but few drafts will be accepted: check the head's weights and its dtype"
)


@dataclass(frozen=True)
class Stopping:
    """A row ends at one of the `eos` token ids, after `max_new_tokens`, or where the target's context is full."""

    eos: frozenset[int]
    max_new_tokens: int
    context_length: int

    def room(self, row: GeneratedRow) -> int:
        """How many tokens the row may still emit."""
        return min(self.max_new_tokens, self.context_length - row.prompt_tokens) - len(row.new_tokens)

    def emit(self, row: GeneratedRow, tokens: list[int]) -> list[int]:
        """Append what the limits allow of `tokens`; sets the row's stop reason if it ends here."""
        kept = tokens[: self.room(row)]
        ends = [index for index, token in enumerate(kept) if token in self.eos]
        if ends:
            kept = kept[: ends[0] + 1]
        row.new_tokens += kept
        if ends:
            row.stop_reason = "eos"
        elif self.room(row) == 0:
            row.stop_reason = "length" if len(row.new_tokens) == self.max_new_tokens else "context"
        return kept


def iterate(
    target: CachedLM,
    drafter: Drafter | None,
    plan: Plan,
    prompts: list[list[int]],
    stopping: Stopping,
    generator: torch.Generator | None,
    graphs: GraphRunner | None = None,
    record_trees: bool = False,
    reuse: bool = False,
) -> Iterator[list[GeneratedRow]]:
    """Yield the rows after the prompts' forward and after every step, until every row has ended.

    `graphs`: replays the steps; None: every step runs as it is. `record_trees`: see `GeneratedRow.trees`.
    `reuse`: begin with what the caches hold of the prompt.

    Raises ValueError where an unfinished row's target distribution is not finite. Warns once where a draft distribution
    was not (the tokens stay exact).
    """
    began = time.perf_counter()
    recorder = TreeRecorder(drafter, plan) if record_trees else None
    decoder = Decoder(target, drafter, plan, generator, graphs, recorder)
    room = max(stopping.room(GeneratedRow(prompt)) for prompt in prompts)
    finite = False  # whether the caches are known to hold finite values only
    try:
        state = decoder.prefill(prompts, room, graphs.buffers if graphs is not None else None, reuse)
        rows = state.rows
        for row, root in zip(state.rows, state.step.root.tolist(), strict=True):
            stopping.emit(row, [root])
            row.seconds = row.prefill_seconds = time.perf_counter() - began
        finite = True
        yield rows
        while any(state.active):
            results = decoder.step(state)
            finite = finite and all(result.finite and not result.replaced for result in results)
            _check(state, results, plan)
            trees = [None] * len(results) if recorder is None else recorder.records()
            for row, result, tree in zip(state.rows, results, trees, strict=True):
                if not row.stop_reason:
                    _record(row, result, stopping, state.clock.seconds, tree)
                    row.seconds = time.perf_counter() - began
            yield rows
            decoder.drop_finished(state)
    finally:
        if finite:
            decoder.remember(rows)
        else:
            decoder.release()


def _check(state: DecodingState, results: list[StepResult], plan: Plan) -> None:
    """Raise where an unfinished row's target distributions are not finite; warn once about the drafter's."""
    active = [not row.stop_reason for row in state.rows]
    check_finite([result.finite or not on for result, on in zip(results, active, strict=True)], "in a step", plan)
    if not state.warned and any(result.replaced for result in results):
        state.warned = True
        warnings.warn(REPLACED, stacklevel=3)


def _record(
    row: GeneratedRow, result: StepResult, stopping: Stopping, seconds: dict[str, float], tree: TreeRecord | None
) -> None:
    kept = stopping.emit(row, result.tokens)
    accepted = min(len(kept), len(result.tokens) - 1)
    truncated = len(kept) < len(result.tokens)
    row.steps.append(StepRecord(accepted, len(kept), result.expected_accepted, result.nodes, truncated, seconds))
    if tree is not None:
        row.trees.append(tree)
