"""Answers of one request, on their way from the decoding thread to a client that may leave at any moment."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

from eagle.api.eagle_model import Prepared
from eagle.serve.scheduler import Job, Scheduler, Update

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]  # the client's next message, as in ASGI


class Numbered(NamedTuple):
    """An update and the number of the job it belongs to."""

    number: int
    update: Update


class Gone(Exception):
    """The client has left."""


class Answers:
    """Queued jobs and their updates: `async for numbered in answers`. Leaving the block cancels what still runs.

    ahead   rows that run or wait before the first of these
    """

    def __init__(self, scheduler: Scheduler, prepared: Sequence[Prepared], choices: int = 1, **options: Any):
        """`options`: of every `Job`. Raises QueueFull."""
        self.scheduler = scheduler
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Numbered]()
        asked = [one for one in prepared for _ in range(choices)]
        self.jobs = [Job(one, self._receiver(index), index=index, **options) for index, one in enumerate(asked)]
        self.ahead = scheduler.submit(self.jobs)

    def _receiver(self, index: int) -> Callable[[Update], None]:
        def deliver(update: Update) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, Numbered(index, update))

        return deliver

    async def updates(self, receive: Receive) -> AsyncGenerator[Numbered, None]:
        """Until every job has ended. `receive` tells when the client leaves: then raises Gone.

        Closing the iterator cancels the jobs.
        """
        open_jobs, gone = len(self.jobs), asyncio.ensure_future(_left(receive))
        try:
            while open_jobs:
                found = await self._next(gone)
                open_jobs -= bool(found.update.finish)
                yield found
        finally:
            gone.cancel()
            self.cancel()

    async def _next(self, gone: asyncio.Future) -> Numbered:
        coming = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not coming.done():
                coming.cancel()
        if gone.done():
            raise Gone
        return coming.result()

    def cancel(self) -> None:
        """Free the rows of all that still runs or waits."""
        for job in self.jobs:
            if not job.ended:
                self.scheduler.cancel(job)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
