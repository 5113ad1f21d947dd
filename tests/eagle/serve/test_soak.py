"""A server among clients that come, go and lie: memory stays flat, no row is left, every answer is whole.

    HSD_SOAK_MINUTES=30 python -m pytest -m slow tests/eagle/serve/test_soak.py -s

Two minutes without the variable. Requests with a seed come again and again, and have to be answered alike (float32).
Memory of the last third is compared with the second: caches have the size of the longest answers by then.
"""

import http.client
import json
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from typing import Any

import psutil
import pytest

from tests.eagle.serve.running import get
from tests.eagle.serve.test_server import Command, free_port

CLIENTS = 12
SECONDS = 60 * float(os.environ.get("HSD_SOAK_MINUTES", 2))
PROMPTS = [
    "What is 2 + 3?",
    "A box holds 12 eggs. How many eggs are in 7 boxes?",
    "Say hello in 5 words.",
    "Ж漢🙂 " * 20,
]
LIES = [
    b"{", b"[]", b"\xff\xfe", b'{"messages": 3}', b'{"messages": []}', b'{"messages": [{"role": "user"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', b'{"prompt": [1, 2, 99999999]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 5000, b'{"n": 1e400, "messages": []}',
]  # fmt: skip


def honest(random: random.Random) -> dict[str, Any]:
    """One of a few dozen requests."""
    return {
        "messages": [{"role": "user", "content": random.choice(PROMPTS)}],
        "temperature": random.choice([0, 0.7, 1.0]),
        "top_p": random.choice([1, 0.9]),
        "seed": random.randrange(3),
        "max_tokens": random.choice([1, 8, 40]),
        "stop": random.choice([None, ["."]]),
        "n": random.choice([1, 1, 1, 2]),
    }


class Soak:
    """What the clients share: counts, answers by request, and what went wrong."""

    def __init__(self, port: int):
        self.port, self.end = port, time.monotonic() + SECONDS
        self.counts: Counter[str] = Counter()
        self.answers: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def post(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, request: dict[str, Any]) -> str:
        """A whole answer, compared with what the same request got before."""
        status, content = self.post(json.dumps(request).encode())
        if status == 429:
            return "refused, full"
        if status != 200:
            self.wrong.append(f"{request} was answered with {status}: {content!r}")
            return "failed"
        return self.compare(request, [choice["message"]["content"] for choice in json.loads(content)["choices"]])

    def compare(self, request: dict[str, Any], said: list[str]) -> str:
        key = json.dumps(request, sort_keys=True)
        with self.lock:
            first = self.answers.setdefault(key, said)
            if first != said:
                self.wrong.append(f"{key}: {first!r}, then {said!r}")
        return "whole"

    def stream(self, request: dict[str, Any], leave_after: int | None) -> str:
        """A stream that is read to its end, or left after some events."""
        body = json.dumps({**request, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as link:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n"
            link.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            events: list[bytes] = []
            for line in link.makefile("rb"):
                if line.startswith(b"data: "):
                    events.append(line[6:].strip())
                if leave_after is not None and len(events) > leave_after:
                    return "left"
        if not events:
            return "refused, full"
        if events[-1] != b"[DONE]":
            self.wrong.append(f"a stream without its end: {events[-1]!r}")
            return "failed"
        said = [""] * request["n"]
        for event in events[:-1]:
            for choice in json.loads(event)["choices"]:
                said[choice["index"]] += choice["delta"].get("content") or ""
        return self.compare(request, said)

    def lie(self, random: random.Random) -> str:
        status, _ = self.post(random.choice(LIES))
        if not 400 <= status < 500:
            self.wrong.append(f"a lie was answered with {status}")
        return "lie refused"

    def stall(self, random: random.Random) -> str:
        """A request that says less than it announces, and leaves."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as link:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 500\r\n\r\n{{"
            link.sendall(head.encode()[: random.randrange(10, len(head))])
            time.sleep(random.random())
        return "stalled"

    def client(self, number: int) -> None:
        choose = random.Random(number)
        while time.monotonic() < self.end:
            kind, request = choose.random(), honest(choose)
            try:
                if kind < 0.4:
                    done = self.ask(request)
                elif kind < 0.6:
                    done = self.stream(request, None)
                elif kind < 0.8:
                    done = self.stream(request, choose.randrange(10))
                else:
                    done = self.lie(choose) if kind < 0.9 else self.stall(choose)
            except OSError as error:
                done = f"{type(error).__name__}"
                self.wrong.append(f"client {number}: {error!r}")
            with self.lock:
                self.counts[done] += 1
            time.sleep(choose.random() / 5)


@pytest.mark.slow
def test_clients_that_come_go_and_lie():
    port = free_port()
    command = Command("--tree", "hybrid", "--nodes", "8", "--depth", "3", "--dtype", "float32", "--port", str(port))
    try:
        command.until("Ctrl-C ends it")
        threading.Thread(target=command.process.stdout.read, daemon=True).start()
        server, soak = psutil.Process(command.process.pid), Soak(port)
        clients = [threading.Thread(target=soak.client, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        sizes: list[tuple[float, int, int, int]] = []
        begin = time.monotonic()
        while any(client.is_alive() for client in clients):
            time.sleep(min(10, SECONDS / 30))
            size = server.memory_info().rss // 2**20, server.num_fds(), server.num_threads()
            sizes.append((time.monotonic() - begin, *size))
        time.sleep(2)
        idle = get(f"http://127.0.0.1:{port}/health")
        files = server.num_fds()
    finally:
        command.process.kill()
    print(f"\n{SECONDS / 60:g} minutes, {dict(soak.counts)}, {len(soak.answers)} different requests")
    print("seconds, MiB, files, threads:", *[sizes[i] for i in range(0, len(sizes), max(1, len(sizes) // 10))], files)
    assert idle == (200, {"status": "ok", "running": 0, "waiting": 0})
    assert not soak.wrong, soak.wrong[:5]
    thirds = [[size[1] for size in sizes if part <= 3 * size[0] / SECONDS < part + 1] for part in (1, 2)]
    assert statistics.median(thirds[1]) < 1.05 * statistics.median(thirds[0]), "memory grows"
    assert files <= sizes[0][2] + 2, "open files are left"
    assert soak.counts["whole"] > SECONDS / 10
