"""Which tree decodes fastest: tokens per second from what a tree accepts and what its step costs.

tokens per second = (1 + E[accepted]) / seconds of a step          plain decoding: 1 / seconds of its step
"""

from collections.abc import Mapping
from typing import NamedTuple

from eagle.autotune.calibration import Expected, Table
from eagle.autotune.candidates import PLAIN, Candidate

ADVANTAGE = 1.03  # over plain decoding: less is within the noise of a measured step


class Point(NamedTuple):
    """One candidate: tau = 1 + E[accepted] and its standard error, the milliseconds of its step."""

    candidate: Candidate
    tau: float
    standard_error: float
    step_ms: float

    @property
    def tokens_per_second(self) -> float:
        """Of one row of the batch."""
        return 1e3 * self.tau / self.step_ms


def points(table: Table, times: Mapping[Candidate, float], kinds: tuple[str, ...]) -> list[Point]:
    """Plain decoding first, then every candidate of these kinds that has both an entry and a time."""
    rows = [row for row in table.trees if row.tree in kinds and row.candidate in times]
    return [Point(PLAIN, 1.0, 0.0, times[PLAIN]), *(_point(row, times) for row in rows)]


def _point(row: Expected, times: Mapping[Candidate, float]) -> Point:
    return Point(row.candidate, 1 + row.expected, row.standard_error, times[row.candidate])


def choose(found: list[Point]) -> Point:
    """The fastest of `points`, or plain decoding, their first: a tree must be `ADVANTAGE` times as fast even with an
    E[accepted] one standard error lower.
    """
    plain, *trees = found
    best = max(trees, key=lambda point: point.tokens_per_second, default=plain)
    careful = best._replace(tau=best.tau - best.standard_error)
    return best if careful.tokens_per_second >= ADVANTAGE * plain.tokens_per_second else plain
