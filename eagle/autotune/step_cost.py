"""What a step costs on this machine: the median milliseconds of one decoding step, for every candidate.

    costs = StepCosts(key)                                        key: models, machine, dtype; None: nothing is kept
    costs.known(batch=4, greedy=False)                            {Candidate: milliseconds}, PLAIN among them, or None
    costs.measure(model, batch=4, greedy=False, accepted={...})   the same, measured now and kept

Candidates alternate round by round, and the times of a round are scaled by how long plain steps took in it: a drift of
the machine, such as other guests on the same memory, reaches all of them alike. A tree that costs more
than what it accepts is left out as soon as the smaller trees of its kind show it, which for large batches is most of
them; after the first round only candidates near the best one are timed on. Times are taken at short prompts and kept in
a file of the user's cache directory, one per key.

Where plain steps differ from round to round the machine is busy: the times are taken once more, and those of a machine
that stays busy are used but not kept. Where time runs out the choice is among what was measured, smaller trees first.
Times that a generation contradicts are forgotten, once.
"""

import contextlib
import hashlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eagle.autotune.candidates import PLAIN, VERIFIER, Candidate, candidates_at
from eagle.autotune.machine import cache_directory
from eagle.autotune.prompts import bundled_prompts
from eagle.autotune.step_timer import step_seconds
from eagle.engine.plan import Plan
from eagle.files import read_json, write_json

WARM_UP, STEPS = 2, 4  # steps of a round that are not timed, and that are: the first step has the prompt's shapes
ROUNDS = 4
NEAR = 0.8  # of the best tokens per second after the first round: slower candidates are timed no more
PROMPT_TOKENS = 64  # of all rows together, at most; a row has at least `SHORTEST`
SHORTEST = 16
FORMAT = 2
STEADY = 1.5  # slowest round of plain steps over the fastest one, on a machine that does nothing else
CONTRADICTED = 1.6  # a generation's steps over the measured ones, or the other way round

Milliseconds = dict[Candidate, float]
Shown = Callable[[Iterable[Candidate]], Iterable[Candidate]]


class Times(NamedTuple):
    """Median milliseconds of a step by candidate. unsteadiness: slowest round of plain steps over the fastest one;
    infinite after one round.
    """

    milliseconds: Milliseconds
    unsteadiness: float


class OutOfTime(Exception):
    """What was to be measured takes too long here."""


class StepCosts:
    """The times of one pair on one machine, by batch size, measured when they are first asked for."""

    def __init__(self, key: dict[str, Any] | None):
        self.key = key
        self._known: dict[str, Milliseconds] = self._read()
        self._forgotten: set[str] = set()

    @property
    def path(self) -> Path | None:
        """The file that holds the times."""
        if self.key is None:
            return None
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        return cache_directory() / f"step-costs-{digest}.json"

    def known(self, batch: int, greedy: bool) -> Milliseconds | None:
        """The times at a batch size, None where they have to be measured."""
        return self._known.get(_name(batch, greedy))

    def measure(
        self, model: Any, batch: int, greedy: bool, accepted: Mapping[Candidate, float], shown: Shown = iter
    ) -> Milliseconds:
        """Measure and keep them. A cache directory that cannot be written is warned about.

        accepted    by candidate, the most that any temperature's E[accepted] can be; missing: its depth
        shown       wraps what is worked through, such as a progress bar
        """
        found, unsteadiness = measure(model, batch, greedy, accepted, shown)
        if unsteadiness > STEADY:
            with contextlib.suppress(OutOfTime):
                again = measure(model, batch, greedy, accepted, shown)
                found, unsteadiness = min(Times(found, unsteadiness), again, key=lambda one: one.unsteadiness)
        self._known[_name(batch, greedy)] = found
        if unsteadiness > STEADY:
            busy = f"the machine is busy: plain steps took {unsteadiness:.1f} times as long in one round as another"
            warnings.warn(
                f"{busy if math.isfinite(unsteadiness) else 'measuring was cut short'}, so the step times behind "
                "tree='auto' are rough and not kept for later processes",
                stacklevel=2,
            )
        elif self.path is not None:
            times = {name: [[*one, ms] for one, ms in times.items()] for name, times in self._known.items()}
            try:
                write_json(self.path, {"format": FORMAT, **self.key, "milliseconds": times})  # type: ignore[dict-item]
            except OSError as error:
                warnings.warn(f"measured step times are not kept: {error}", stacklevel=2)
        return found

    def observe(self, batch: int, greedy: bool, candidate: Candidate, milliseconds: float) -> None:
        """Forget times that a generation's median step contradicts: the next choice measures again (once)."""
        name = _name(batch, greedy)
        expected = self._known.get(name, {}).get(candidate)
        if expected is None or name in self._forgotten:
            return
        if not 1 / CONTRADICTED < milliseconds / expected < CONTRADICTED:
            self._forgotten.add(name)
            del self._known[name]

    def _read(self) -> dict[str, Milliseconds]:
        """What the file holds; nothing where there is none, or a damaged one: times can be measured again."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            value = read_json(self.path)
            if value["format"] != FORMAT:
                return {}
            return {
                name: {Candidate(str(tree), int(nodes), int(depth)): float(ms) for tree, nodes, depth, ms in times}
                for name, times in value["milliseconds"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}


def _name(batch: int, greedy: bool) -> str:
    return f"batch {batch}, {'greedy' if greedy else 'sampling'}"


def measure(model: Any, batch: int, greedy: bool, accepted: Mapping[Candidate, float], shown: Shown = iter) -> Times:
    """The times of `batch` rows at once.

    model              an `eagle.EagleModel` with a drafter and a tokenizer
    accepted, shown    as in `StepCosts.measure`

    Raises OutOfTime where `shown` does before one tree is timed.
    """
    ratios: dict[Candidate, list[float]] = {}  # to the median plain step of the round
    plain: list[float] = []  # median of every round
    try:
        for candidate, found in _rounds(model, batch, 0.0 if greedy else 1.0, accepted, ratios, shown):
            if candidate == PLAIN:
                plain.append(statistics.median(found))
            ratios.setdefault(candidate, []).extend(ms / plain[-1] for ms in found)
    except OutOfTime:
        if len(ratios) < 2:
            raise
    unsteadiness = max(plain) / min(plain) if len(plain) > 1 else math.inf
    unit = statistics.median(plain)
    return Times({one: unit * statistics.median(found) for one, found in ratios.items()}, unsteadiness)


def _rounds(
    model: Any,
    batch: int,
    temperature: float,
    accepted: Mapping[Candidate, float],
    ratios: Mapping[Candidate, list[float]],
    shown: Shown,
) -> Iterator[tuple[Candidate, list[float]]]:
    """Candidates with some milliseconds each, round by round; `ratios` are those so far, to plain steps."""
    prompts = bundled_prompts(model.tokenizer)
    candidates = [PLAIN, *sorted(candidates_at(temperature), key=lambda one: one.nodes)]
    for index in range(ROUNDS):
        prompt = prompts[index % len(prompts)][-max(PROMPT_TOKENS // batch, SHORTEST) :]
        for candidate in shown(candidates):
            medians = {one: statistics.median(found) for one, found in ratios.items()}
            timed_on = index == 0 or (candidate in ratios and is_near_best(candidate, medians, accepted))
            if timed_on and can_gain(candidate, medians, accepted):
                yield candidate, list(step_times(model, candidate, prompt, batch, temperature))


def can_gain(candidate: Candidate, times: Milliseconds, accepted: Mapping[Candidate, float]) -> bool:
    """Whether a tree may be faster than plain decoding by what it accepts.

    It is taken to be at least as slow as those of its kind in `times` that are no larger.
    """
    known = [ms for one, ms in times.items() if one.tree == candidate.tree and one.nodes <= candidate.nodes]
    tau = 1 + accepted.get(candidate, candidate.depth)
    return candidate == PLAIN or not known or max(known) < tau * times[PLAIN]


def is_near_best(candidate: Candidate, times: Milliseconds, accepted: Mapping[Candidate, float]) -> bool:
    """Whether a candidate may be the fastest, by the tokens per second of those whose E[accepted] is known."""
    speeds = {one: (1 + accepted[one]) / ms for one, ms in times.items() if one in accepted}
    return candidate not in speeds or speeds[candidate] >= NEAR * max(speeds.values())


def step_times(model: Any, candidate: Candidate, prompt: list[int], batch: int, temperature: float) -> Iterator[float]:
    """Milliseconds of some steps of one generation from `batch` copies of a prompt."""
    plan = Plan.resolve(candidate.tree, VERIFIER, candidate.settings, temperature)
    room = (WARM_UP + STEPS) * (plan.depth + 1) + 1
    prompts = [prompt[-max(model.context_length - room, 1) :]] * batch
    for seconds in step_seconds(model, plan, prompts, temperature, STEPS, warm_up=WARM_UP):
        yield 1e3 * sum(seconds.values())
