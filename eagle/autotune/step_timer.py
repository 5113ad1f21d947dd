"""Seconds of decoding steps: the one timer under step costs and step times by phase."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from eagle.engine.distributions import Sampling, SamplingParams
from eagle.engine.graphs import graph_blocker
from eagle.engine.plan import Plan
from eagle.engine.session import Clock, Session

HOST = "host"  # what lies between the phases


def step_seconds(
    model: Any,
    plan: Plan,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    steps: int,
    *,
    warm_up: int = 0,
    room: int | None = None,
    graphs: bool = True,
    synchronize: bool = False,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Seconds of `steps` steps by phase and of the `HOST`, all rows decoded at once; no token ends a row.

    warm_up      steps behind the prompts that are not timed: the first has other shapes, then graphs are recorded
    room         tokens of a row behind its prompt before the rows start over; None: as many as the steps can need
    graphs       replay steps where they can be recorded
    synchronize  wait for the device after every phase, so that its work counts where it began
    """
    room = (warm_up + steps) * (plan.depth + 1) + 1 if room is None else room
    sampling = Sampling(SamplingParams(temperature))
    graphs = graphs and graph_blocker(model.target, plan.drafter_of(model.drafter), sampling) is None
    left = steps
    while left:
        with model.session(plan, graphs=graphs) as session:
            session.clock = Clock(model.device if synchronize else None)
            for index, prompt in enumerate(prompts):
                session.add(prompt, sampling, seed + index, max_new_tokens=room)
            for _ in range(warm_up):
                session.step()
            while left and _longest(session) + plan.depth + 1 <= room:
                yield _timed(session)
                left -= 1


def _longest(session: Session) -> int:
    return max(len(row.new_tokens) for row in session.rows)


def _timed(session: Session) -> dict[str, float]:
    began = time.perf_counter()
    session.step()
    whole = time.perf_counter() - began
    phases = session.clock.seconds
    return {**phases, HOST: max(whole - sum(phases.values()), 0.0)}
