"""Ports, and children that end."""

import socket

import pytest

from eagle.serve import launch


def test_a_taken_port_is_replaced():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert launch.free_port("127.0.0.1", port) != port
    assert launch.free_port("127.0.0.1", port) == port


def test_urls():
    assert launch.url("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert launch.url("::1", 8000) == "http://[::1]:8000"


def test_a_child_that_fails_is_named_with_the_end_of_its_log():
    with launch.Server() as server:
        server.start("worker", ["-c", "raise SystemExit('no such model')"])
        with pytest.raises(RuntimeError, match=r"(?s)the worker ended with code 1.*no such model"):
            server.wait_for_model("http://127.0.0.1:9", "demo", patience=30)


def test_children_end_with_the_server_also_those_that_ignore_it():
    with launch.Server() as server:
        ignoring = (
            "from signal import *; import time; signal(SIGTERM, SIG_IGN); print('on', flush=True); time.sleep(60)"
        )
        child = server.start("controller", ["-c", ignoring])
        while "on" not in child.log.read_text():
            server.check()
    assert child.process.poll() is not None
