"""One model being served: its queue, its counters, and the log of its requests."""

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eagle.api.arguments import resolve_arguments, stated
from eagle.api.eagle_model import EagleModel
from eagle.serve.metrics import Meters
from eagle.serve.scheduler import MAX_QUEUED, MAX_ROWS, Job, Scheduler

log = logging.getLogger("eagle.serve")


@dataclass
class Service:
    """A model behind routes.

    name        what requests call it
    drafting    keywords of `EagleModel.generate` that every request starts from
    template    variables of the chat template, the same for every request
    """

    model: EagleModel
    name: str
    drafting: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    max_rows: int = MAX_ROWS
    max_queued: int = MAX_QUEUED
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.model.auto.settled = True  # a request is no time to measure: what is not known is taken as shipped
        self.meters = Meters()
        self.scheduler = Scheduler(self.model, self.max_rows, self.max_queued, self.meters)
        self.text_of = functools.lru_cache(1 << 16)(lambda token: self.model.tokenizer.decode([token]))

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "eagle3-hsd",
            "max_model_len": self.model.context_length,
        }

    def sampling(self) -> dict[str, float]:
        """What a request that says nothing is sampled with: the model's generation_config.json, where it says so."""
        found = resolve_arguments({}, stated(getattr(self.model.target.model, "generation_config", None))).sampling
        return {"temperature": found.temperature, "top_p": found.top_p, "top_k": found.top_k}

    def count(self, route: str, status: int) -> None:
        """One request more."""
        self.meters.requests.labels(route, str(status)).inc()

    def note(self, route: str, status: int, jobs: Sequence[Job], began: float, user: str = "", end: str = "") -> None:
        """Count a request and log it in one line; texts are not logged."""
        self.count(route, status)
        rows = [job.row for job in jobs if job.row is not None]
        steps = [step for row in rows for step in row.steps]
        parts = [f"{route} {status}", f"{time.perf_counter() - began:.2f} s", *([end] if end else [])]
        if rows:
            parts.append(f"{sum(row.prompt_tokens for row in rows)} + {sum(job.tokens for job in jobs)} tokens")
        if steps:
            parts.append(
                f"acceptance length {sum(step.emitted for step in steps) / len(steps):.2f} in {len(steps)} steps"
            )
        if user:
            parts.append(f"user {user!r}")
        log.info(", ".join(parts))

    def close(self) -> None:
        """End everything that runs."""
        self.scheduler.close()
