"""A worker in this process, on a port of its own, without a controller."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from eagle.serve import launch
from eagle.serve.worker import Worker, build_app


@contextmanager
def running(model, most_queued: int = 64, most_bytes: int = 20000, **drafting) -> Iterator[tuple[str, Worker]]:
    """The worker's URL and the worker."""
    port = launch.free_port("127.0.0.1")
    address = launch.url("127.0.0.1", port)
    worker = Worker(model, "demo", "http://127.0.0.1:9", address, drafting, most_queued)
    server = uvicorn.Server(
        uvicorn.Config(build_app(worker, most_bytes), port=port, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield address, worker
    server.should_exit = True
    thread.join(10)
