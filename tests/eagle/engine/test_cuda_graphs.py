"""What surrounds CUDA's own calls, with stand-ins for them: a capture that fails leaves everything as it was."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from eagle.engine.graphs import CudaGraphs, GraphRunner
from eagle.engine.session import Clock
from eagle.nn import memory

DEVICE = torch.device("cuda", 1)


class FakeCapture:
    """torch.cuda.graph: enters its stream, and leaves it only where the capture ends well."""

    def __init__(self, graph, pool, stream, capture_error_mode):
        self.pool, self.stream = pool, stream

    def __enter__(self):
        CUDA.began_in_inference_mode = torch.is_inference_mode_enabled()
        self.outer, CUDA.stream = CUDA.stream, self.stream

    def __exit__(self, kind, *_):
        if kind is not None:
            raise RuntimeError("capture_end: operation failed due to a previous error during capture")
        CUDA.stream = self.outer


CUDA = SimpleNamespace()


@pytest.fixture
def cuda(monkeypatch):
    """The current stream, and whether a capture began in inference mode."""
    vars(CUDA).update(stream="outer", began_in_inference_mode=None, devices=[])
    stand_ins = {
        "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "graph_pool_handle": object,
        "current_stream": lambda device=None: CUDA.stream,
        "set_stream": lambda stream: setattr(CUDA, "stream", stream),
        "device": lambda device: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": FakeCapture,
        "synchronize": CUDA.devices.append,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return CUDA


def test_a_failed_capture_leaves_its_stream_and_says_why(cuda):
    def waits():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaGraphs(DEVICE).record(waits)
    assert cuda.stream == "outer"


def test_a_capture_begins_outside_inference_mode_and_works_inside(cuda):
    """What it leaves in torch's own generator is then no inference tensor, at which a user's own graphs would raise."""
    seen = []
    with torch.inference_mode():
        found = CudaGraphs(DEVICE).record(lambda: seen.append(torch.is_inference_mode_enabled()) or 5)
    assert found.outputs == 5 and seen == [True]
    assert cuda.began_in_inference_mode is False and cuda.stream == "outer"


def test_what_was_recorded_before_a_failure_is_freed(cuda):
    def fails():
        if cuda.stream != "outer" and len(done) > 3:
            raise RuntimeError("no")
        done.append(cuda.stream)

    done: list = []
    runner = GraphRunner(CudaGraphs(DEVICE))
    runner.backend.warm_up = lambda function: function()
    for phase in ("draft", "score"):
        runner.begin("key", {})
        runner.run(phase, fails)
        runner.run(phase, fails)
    pool = runner.backend.pool
    runner.run("verify", fails)
    with pytest.warns(UserWarning, match="decoding goes on without graphs: verify cannot be recorded: no"):
        runner.run("verify", fails)
    assert runner.recorded == 0 and runner.backend.pool is not pool


def test_a_clock_waits_for_its_own_device(cuda):
    clock = Clock(synchronize=DEVICE)
    clock.start()
    clock.lap("draft")
    clock.lap("draft")
    assert cuda.devices == [DEVICE] * 3 and clock.seconds["draft"] > 0


def test_memory_in_the_pools_of_graphs_is_not_free(monkeypatch):
    segment = lambda device, pool, total, used: {
        "device": device,
        "segment_pool_id": pool,
        "total_size": total,
        "allocated_size": used,
    }
    segments = [segment(1, (0, 0), 100, 30), segment(1, (0, 7), 1000, 0), segment(0, (0, 0), 500, 0)]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 10))
    assert memory.free_bytes(DEVICE) == 5 + 70
