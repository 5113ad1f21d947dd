"""The queue in front of a model: rows join the running batch between two steps and leave it between two steps.

    scheduler = Scheduler(model)
    job = Job(model.prepare(ids, arguments), deliver)      deliver(update) is called from the decoding thread
    scheduler.submit([job])
    scheduler.cancel(job)                                  its row is free before the next step

One thread owns the model. It keeps a `Session` per way of decoding, which is a `Lane`: all rows with the same plan are
decoded together whatever their sampling parameters are, and lanes take turns step by step. A row's tokens depend on
its prompt, parameters and seed alone.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from eagle.api.eagle_model import EagleModel, Prepared, row_generator
from eagle.api.outputs import GeneratedRow, StepRecord, TreeRecord
from eagle.engine.graphs import graph_blocker
from eagle.engine.plan import Plan
from eagle.engine.session import Session
from eagle.serve.logprobs import TokenLogprob, emitted_logits, logprobs_of
from eagle.serve.metrics import Meters
from eagle.serve.text import StopFilter, TextDecoder, Texts, finish_reason

MAX_ROWS, MAX_QUEUED = 16, 64
IDLE_LANES = 2  # sessions without rows whose caches are kept: what they hold of a conversation is not read again
INTERNAL = "internal error; the server's log says more"

log = logging.getLogger("eagle.serve")


class QueueFull(Exception):
    """More rows wait than are taken."""


class Update(NamedTuple):
    """What one step, or the prompt's forward, added to an answer; or why nothing more comes.

    text, tokens    new ones, up to a stop string
    finish          "" while it goes on, then "stop", "length", or "error" with a sentence in `error`
    step            None for the prompt's forward
    tree            where the job records trees
    logprobs        one per token, where the job asked for them
    """

    text: str = ""
    tokens: Sequence[int] = ()
    finish: str = ""
    step: StepRecord | None = None
    tree: TreeRecord | None = None
    logprobs: Sequence[TokenLogprob] = ()
    error: str = ""


@dataclass(eq=False)
class Job:
    """One row that is asked for.

    prepared    `EagleModel.prepare` of one prompt
    deliver     called with every `Update`, from the decoding thread; must return at once
    index       of the row among those of one seed
    stop        strings that end the text before their first occurrence
    logprobs    how many of the likeliest tokens are listed; None: no log-probabilities
    row         None until it joins the batch
    tokens      how many tokens count as the answer: none behind a stop string
    times       seconds of `time.perf_counter`: asked, first token, end; 0 where it has not come to that
    """

    prepared: Prepared
    deliver: Callable[[Update], None]
    index: int = 0
    stop: Sequence[str] = ()
    logprobs: int | None = None
    row: GeneratedRow | None = None
    tokens: int = 0
    cancelled: bool = False
    asked: float = field(default_factory=time.perf_counter)
    began: float = 0.0
    ended: float = 0.0
    texts: Texts | None = None


class Key(NamedTuple):
    """What rows of one session have in common."""

    plan: Plan
    graphs: bool
    watched: bool
    trees: bool


class Lane:
    """A session and the jobs of its rows."""

    def __init__(self, model: EagleModel, key: Key):
        self.key = key
        self._open = contextlib.ExitStack()
        place = model.session(key.plan, graphs=key.graphs, record_trees=key.trees, reuse=True)
        self.session: Session = self._open.enter_context(place)
        self.session.watched = key.watched
        self.jobs: dict[int, Job] = {}  # by the identity of their rows

    def leave(self, job: Job) -> None:
        """Free a job's row."""
        assert job.row is not None
        self.session.remove(job.row)
        self.jobs.pop(id(job.row), None)

    def close(self) -> None:
        """Free all rows; the caches go back to the model."""
        self.jobs.clear()
        self._open.close()


class Scheduler:
    """See the module.

    max_rows      rows that are decoded at once
    max_queued    rows that run or wait; further ones are refused
    """

    def __init__(
        self,
        model: EagleModel,
        max_rows: int = MAX_ROWS,
        max_queued: int = MAX_QUEUED,
        meters: Meters | None = None,
    ):
        self.model, self.max_rows, self.max_queued = model, max_rows, max_queued
        self.meters = meters or Meters()
        self.running = 0
        self._waiting: deque[Job] = deque()
        self._lanes: dict[Key, Lane] = {}
        self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)
        self._thread.start()

    # --- from any thread -------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Rows that run or wait."""
        return self.running + len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> int:
        """Queue all of them or, with QueueFull, none. Returns how many rows run or wait before them."""
        with self._change:
            if self._closing:
                raise QueueFull("the server is ending")
            ahead = self.queued
            if ahead + len(jobs) > self.max_queued:
                raise QueueFull(
                    f"{ahead} answers are running or waiting and the server takes {self.max_queued}: try again later"
                )
            self._waiting.extend(jobs)
            self._count()
            self._change.notify()
        return ahead

    def cancel(self, job: Job) -> None:
        """Take a job out before the next step; nothing more is delivered of it after that."""
        with self._change:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._count()
            self._change.notify()

    def close(self, seconds: float = 30) -> None:
        """End every job with an error, and the thread after the step that runs."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)

    # --- in the decoding thread ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        while self._wait():
            try:
                self._sweep()
                self._admit()
                for lane in list(self._lanes.values()):
                    if lane.jobs:
                        self._step(lane)
            except Exception as error:  # the thread must outlive whatever a row or its receiver does
                log.exception("the decoding thread met an error")
                for lane in list(self._lanes.values()):
                    self._fail(lane, error)
        self._end()

    def _wait(self) -> bool:
        """Until there is work. False: the end."""
        with self._change:
            while not (self._closing or self._waiting or self.running):
                self._change.wait()
            return not self._closing

    def _sweep(self) -> None:
        """Free the rows whose jobs were cancelled."""
        for lane in self._lanes.values():
            for job in [job for job in lane.jobs.values() if job.cancelled]:
                self._retire(lane, job)

    def _admit(self) -> None:
        """Read one waiting job's prompt where there is a place; further ones wait for the next step."""
        with self._change:
            if not self._waiting or self.running >= self.max_rows:
                return
            job = self._waiting.popleft()
            self.running += 1
            self._count()
        try:
            lane = self._lane(job)
            self._join(lane, job)
        except Exception as error:
            self._gone(job)
            self._deliver(job, Update(finish="error", error=sentence(error)))
            return
        self._report(lane, job, 0, None)

    def _join(self, lane: Lane, job: Job) -> None:
        prepared = job.prepared
        job.texts = Texts(TextDecoder(self.model.tokenizer), StopFilter(job.stop))
        job.row = lane.session.add(
            prepared.prompts[0],
            prepared.sampling,
            row_generator(prepared.seed, job.index),
            stopping=prepared.stopping,
            reuse=True,
        )
        lane.jobs[id(job.row)] = job
        job.began = time.perf_counter()
        self.meters.prompt_tokens.inc(job.row.prompt_tokens - job.row.reused_tokens)
        self.meters.reused_tokens.inc(job.row.reused_tokens)
        self.meters.first.observe(job.began - job.asked)
        self.meters.tokens.inc()

    def _lane(self, job: Job) -> Lane:
        """The session that a job's row belongs to; opened where there is none."""
        prepared = job.prepared
        drafter = prepared.plan.drafter_of(self.model.drafter)
        watched, trees = job.logprobs is not None, prepared.args.record_trees
        blocked = self.model.new_graphs is None or graph_blocker(self.model.target, drafter, prepared.sampling)
        graphs = not (blocked or watched or trees or prepared.args.graphs is False)
        key = Key(prepared.plan, graphs, watched, trees)
        if key not in self._lanes:
            idle = [key for key, lane in self._lanes.items() if not lane.jobs]
            for other in idle[: len(idle) + 1 - IDLE_LANES]:
                self._lanes.pop(other).close()
            self._lanes[key] = Lane(self.model, key)
        return self._lanes[key]

    def _step(self, lane: Lane) -> None:
        rows = lane.session.rows
        try:
            records = lane.session.step()
        except Exception as error:
            self._fail(lane, error)
            return
        self.meters.step(records)
        for place, (row, record) in enumerate(zip(rows, records, strict=True)):
            self._report(lane, lane.jobs[id(row)], place, record)

    def _report(self, lane: Lane, job: Job, place: int, record: StepRecord | None) -> None:
        """Hand on what a step added to a row that was the session's row number `place` in it."""
        row, texts = job.row, job.texts
        assert row is not None and texts is not None
        new = row.new_tokens[job.tokens :]
        text, count = texts.push(new)
        job.tokens += count
        finish = "stop" if texts.stops.stopped else finish_reason(row)
        if finish:
            text += texts.finish()
            finish = "stop" if texts.stops.stopped else finish
        update = Update(
            text, new[:count], finish, record, _taken(row.trees), self._logprobs(lane, job, place, record, new[:count])
        )
        if finish:
            self._retire(lane, job)
        self._deliver(job, update)

    def _logprobs(
        self, lane: Lane, job: Job, place: int, record: StepRecord | None, tokens: list[int]
    ) -> list[TokenLogprob]:
        if job.logprobs is None or not tokens:
            return []
        if record is None:
            assert lane.session.first is not None
            return logprobs_of(lane.session.first[None], tokens, job.logprobs)
        assert lane.session.trees is not None
        return logprobs_of(emitted_logits(lane.session.trees, place, len(tokens)), tokens, job.logprobs)

    def _retire(self, lane: Lane, job: Job) -> None:
        lane.leave(job)
        self._gone(job)
        self.meters.seconds.observe(job.ended - job.asked)

    def _gone(self, job: Job) -> None:
        job.ended = time.perf_counter()
        with self._change:
            self.running -= 1
            self._count()

    def _fail(self, lane: Lane, error: Exception) -> None:
        """End every job of a session that cannot go on."""
        jobs = list(lane.jobs.values())
        self._lanes.pop(lane.key, None)
        for job in jobs:
            self._gone(job)
        lane.close()
        for job in jobs:
            self._deliver(job, Update(finish="error", error=sentence(error)))

    def _end(self) -> None:
        for lane in list(self._lanes.values()):
            self._fail(lane, ValueError("the server is ending"))
        with self._change:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._count()
        for job in waiting:
            self._deliver(job, Update(finish="error", error="the server is ending"))

    def _deliver(self, job: Job, update: Update) -> None:
        if job.cancelled:
            return
        try:
            job.deliver(update)
        except RuntimeError:  # its event loop has ended
            job.cancelled = True

    def _count(self) -> None:
        self.meters.running.set(self.running)
        self.meters.waiting.set(len(self._waiting))


def _taken(trees: list[TreeRecord]) -> TreeRecord | None:
    """The latest tree, which a row of a long answer does not keep."""
    latest = trees[-1] if trees else None
    trees.clear()
    return latest


def sentence(error: Exception) -> str:
    """What a client is told: our own errors are sentences, others go to the log."""
    if isinstance(error, ValueError):
        return str(error)
    log.error("an answer failed", exc_info=error)
    return INTERNAL
