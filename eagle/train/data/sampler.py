"""Many prompts answered by one session: as rows end, the next prompts join.

Every request has random numbers and sampling parameters of its own, so its answer depends on neither the number of rows
nor the order of requests, up to the rounding of products of another shape.
"""

import ctypes
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eagle.engine.distributions import SamplingParams
from eagle.engine.plan import Plan
from eagle.engine.records import GeneratedRow
from eagle.engine.session import Session
from eagle.engine.stopping import Stopping
from eagle.nn import grouped_attention
from eagle.nn.target import CachedLM
from eagle.trees import TreeSettings

MALLOC = {-1: 2**30, -2: 2**28, -4: 0}  # M_TRIM_THRESHOLD and M_TOP_PAD in bytes, M_MMAP_MAX (malloc.h)


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors (glibc; elsewhere nothing happens).

    By default whatever is free at the heap's end and every freed block of 32 MB go back to the system, and the next
    tensors wait for their pages to be mapped and zeroed again: half of the time of 128 x 151,936 probabilities. Of use
    where tensors have the same sizes all the time, as in sampling. Not in training: its sizes differ from batch to
    batch, the heap fragments, and a process had grown to 7 GB after 18 minutes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


@dataclass
class Request:
    """A prompt and how to continue it. `key` is the caller's; `limit` is the largest number of new tokens."""

    key: int
    prompt: list[int]
    limit: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


class Sampler:
    """Answers requests with at most `rows` of them in progress; an answer ends with one of `ends`."""

    def __init__(self, model: Any, rows: int, ends: list[int], vocabulary: int | None = None) -> None:
        """`model` is a stock causal LM, whose attention is set for this. `vocabulary`: ids from here on are padding of
        the model's tables and are never sampled.
        """
        model.set_attn_implementation(grouped_attention.NAME)
        self.model, self.rows, self.ends, self.vocabulary = model, rows, set(ends), vocabulary
        self.target, self.context = CachedLM(model), model.config.max_position_embeddings

    def run(self, queue: deque[Request]) -> Iterator[tuple[Request, list[int]]]:
        """Yield every request with its answer, end token included, as it ends; requests may be added meanwhile.

        Raises ValueError where logits are not finite.
        """
        plan = Plan.resolve("none", "token", TreeSettings(1))
        session = Session(self.target, None, plan, vocabulary=self.vocabulary)
        open_rows: dict[GeneratedRow, Request] = {}
        while queue or open_rows:
            while queue and len(session.rows) < self.rows:
                request = queue.popleft()
                row = self._add(session, request)
                if row.finished:
                    yield request, row.new_tokens
                else:
                    open_rows[row] = request
            session.step()
            for row in [row for row in open_rows if row.finished]:
                yield open_rows.pop(row), row.new_tokens

    def _add(self, session: Session, request: Request) -> GeneratedRow:
        rows = 1 << len(session.rows).bit_length()  # powers of two, so that the cache is seldom moved
        session.reserve(min(self.rows, rows), len(request.prompt) + request.limit)
        stopping = Stopping(frozenset(self.ends), request.limit, self.target.context_length)
        params = SamplingParams(request.temperature, top_p=request.top_p)
        return session.add(request.prompt, params, request.seed, stopping=stopping)
