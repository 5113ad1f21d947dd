"""From prompts to finished rows: run steps until every row has ended, and keep the record of each step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eagle.drafters import Drafter
from eagle.engine.cuda_graphs import GraphRunner
from eagle.engine.step import Plan, Session, StepResult, prefill, step
from eagle.model.outputs import GeneratedRow, StepRecord
from eagle.modules.target import CachedLM
from eagle.trees import find_tree


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
    captured: GraphRunner | None = None,
) -> Iterator[list[GeneratedRow]]:
    """Yield the rows after the prompts' forward and after every step, until every row has ended.

    `captured`: recordings that the steps are replayed from; None: every step runs as it is.
    """
    began = time.perf_counter()
    rows = [GeneratedRow(prompt) for prompt in prompts]
    drafter = drafter if find_tree(plan.tree) else None
    stock = captured.stock if captured is not None else None
    session = prefill(target, drafter, plan, prompts, max(map(stopping.room, rows)), generator, stock)
    for row, sequence in zip(rows, session.sequences):
        stopping.emit(row, sequence[-1:])
        row.seconds = row.prefill_seconds = time.perf_counter() - began
    yield rows
    while _mark_active(session, rows):
        results, seconds = step(target, drafter, plan, session, generator, captured)
        for row, result, active in zip(rows, results, session.active):
            if active:
                _record(row, result, stopping, seconds)
                row.seconds = time.perf_counter() - began
        yield rows


def _mark_active(session: Session, rows: list[GeneratedRow]) -> bool:
    session.active = [not row.stop_reason for row in rows]
    return any(session.active)


def _record(row: GeneratedRow, result: StepResult, stopping: Stopping, seconds: dict[str, float]) -> None:
    kept = stopping.emit(row, result.tokens)
    accepted = min(len(kept), len(result.tokens) - 1)
    truncated = len(kept) < len(result.tokens)
    row.steps.append(StepRecord(accepted, len(kept), result.expected_accepted, result.nodes, truncated, seconds))
