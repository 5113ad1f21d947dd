"""A server in this process, on a port of its own."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from eagle.serve.app import build_app
from eagle.serve.guard import Rules
from eagle.serve.service import Service

PAIR = ("checkpoints/demo/target", "checkpoints/demo/eagle3")
DRAFTING = {"tree": "hybrid", "verifier": "hsd", "nodes": 8, "depth": 3}


@contextmanager
def running(
    model, drafting=DRAFTING, rules: Rules | None = None, max_rows: int = 16, max_queued: int = 64
) -> Iterator[tuple[str, Service]]:
    """The server's URL and its service."""
    service = Service(model, "demo", dict(drafting), {}, max_rows, max_queued)
    place = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build_app(service, rules or Rules(max_bytes=20000)), log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{place.getsockname()[1]}", service
    server.should_exit = True
    thread.join(10)


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request; `body` is sent as it is where it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **names})
    return answer(request)


def get(url: str, **headers: str) -> tuple[int, Any]:
    """Status and JSON (bytes where it is none) of a GET."""
    return answer(urllib.request.Request(url, headers=headers))


def answer(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            status, text, kind = found.status, found.read(), found.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        status, text, kind = error.code, error.read(), error.headers.get("Content-Type", "")
    return status, json.loads(text) if kind.startswith("application/json") else text


def wait_until_free(service: Service, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while service.scheduler.queued:
        assert time.monotonic() < end, f"{service.scheduler.queued} rows are still in use"
        time.sleep(0.01)
