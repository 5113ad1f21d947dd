"""The processes of a server: start them, wait until they answer, end them.

controller    fastchat.serve.controller
api           eagle.serve.api
worker        python -m eagle.serve --worker-only
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PATIENCE = 600  # seconds for a model to load
SHUTDOWN = 3  # seconds between SIGTERM and SIGKILL


class Child(NamedTuple):
    """A process and the file its output goes to."""

    name: str
    process: subprocess.Popen
    log: Path


class Server:
    """Child processes that end with this object: `with Server() as server`."""

    def __init__(self) -> None:
        self.logs = Path(tempfile.mkdtemp(prefix="eagle-serve-"))
        self.children: list[Child] = []

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start `python ARGUMENTS` in a session of its own: Ctrl-C in the terminal reaches the parent only."""
        log = self.logs / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "LOGDIR": ""},  # FastChat writes log files there
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raises RuntimeError with the end of the log where a child is gone."""
        for child in self.children:
            code = child.process.poll()
            if code is not None:
                last = "\n".join(child.log.read_text(errors="replace").splitlines()[-8:])
                raise RuntimeError(f"the {child.name} ended with code {code}:\n{last}")

    def wait_for_model(self, api: str, model: str, patience: float = PATIENCE) -> None:
        """Until the API lists the model. Raises RuntimeError where a child ends before, or after `patience` seconds."""
        end = time.monotonic() + patience
        while model not in models(api):
            self.check()
            if time.monotonic() > end:
                raise RuntimeError(f"the model {model!r} did not appear within {patience:g} s; see {self.logs}")
            time.sleep(0.3)

    def watch(self) -> None:
        """Until a child ends: RuntimeError."""
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """End the children, the latest first; one that does not is killed (FastChat's controller never ends alone)."""
        for child in reversed(self.children):
            child.process.terminate()
        end = time.monotonic() + SHUTDOWN
        for child in self.children:
            try:
                child.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def models(api: str) -> list[str]:
    """Names the API lists; none where it does not answer yet."""
    try:
        with urllib.request.urlopen(f"{api}/v1/models", timeout=10) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except (urllib.error.URLError, OSError, ValueError):
        return []


def free_port(host: str, preferred: int = 0) -> int:
    """`preferred` where it is free on `host`, else any free port."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: closed connections linger
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError(f"no free port on {host}")


def url(host: str, port: int) -> str:
    """How this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def start_controller(server: Server, host: str) -> str:
    """FastChat's controller; returns its URL."""
    port = free_port(host, 21001)
    server.start("controller", ["-m", "fastchat.serve.controller", "--host", host, "--port", str(port)])
    return url(host, port)


def start_api(server: Server, controller: str, host: str, port: int | None, most_bytes: int) -> str:
    """The API server; returns its URL."""
    port = port or free_port(host, 8000)
    call = f"from eagle.serve.api import run; run({controller!r}, {host!r}, {port}, {most_bytes})"
    server.start("api", ["-c", call])
    return url(host, port)


def interrupt_on_termination() -> None:
    """SIGTERM ends this process as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
