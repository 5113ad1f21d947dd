"""What GET /metrics shows, in Prometheus' text format."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from eagle.api.outputs import StepRecord

ACCEPTED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16)  # bounds of the histogram of accepted tokens
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Meters:
    """The counters of one server."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "eagle"}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **own)
        self.running = Gauge("rows_running", "Rows in the running batch", **own)
        self.waiting = Gauge("rows_waiting", "Rows that wait for a place in it", **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts that were read", **own)
        self.reused_tokens = Counter("reused_prompt_tokens", "Prompt tokens that lay in a cache already", **own)
        self.tokens = Counter("generated_tokens", "Emitted tokens", **own)
        self.steps = Counter("steps", "Decoding steps, each of all rows of a session", **own)
        self.accepted = Histogram(
            "accepted_tokens_per_step", "Draft tokens accepted, per row and step", buckets=ACCEPTED, **own
        )
        self.first = Histogram(
            "time_to_first_token_seconds", "From a row's arrival to its first token", buckets=SECONDS, **own
        )
        self.seconds = Histogram("row_seconds", "From a row's arrival to its last token", buckets=SECONDS, **own)

    def step(self, records: Sequence[StepRecord]) -> None:
        """One step of a session."""
        self.steps.inc()
        for record in records:
            self.accepted.observe(record.accepted)
            self.tokens.inc(record.emitted)

    def text(self) -> bytes:
        """What is shown."""
        return generate_latest(self.registry)
