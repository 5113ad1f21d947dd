"""The phases of a step, recorded once per key and replayed: on a GPU a step costs its kernels, not its Python.

    a key is seen for the first time     its phases run as they are (CUDA: on a side stream, where libraries warm up)
                  the second time        each phase is recorded, then replayed
                  from then on           replayed

A recording has addresses and host values baked in. So the key holds every host value that a step depends on (plan,
batch, attention windows); what outlives a step lies in tensors that are written in place, and when one of those was
allocated anew (a longer request) all recordings are dropped. What one phase gives the next lies in the recording.

Random numbers come from the backend's own generator, the only one that recordings know: a step takes over the state of
the caller's generator and gives it back advanced, so that the draws are those of a step that is not recorded.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from eagle.engine.sequence import StateBuffers


class Recording(NamedTuple):
    """`replay` does the recorded work again; `outputs` (the same tensors every time) then hold its results."""

    replay: Callable[[], None]
    outputs: Any


class Backend(Protocol):
    """What records. `generator` is the one that recorded functions may draw from."""

    generator: torch.Generator

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call a function that will be recorded next time."""

    def record(self, function: Callable[[], Any]) -> Recording:
        """Record without doing the work. RuntimeError when the function does what cannot be recorded."""

    def reset(self) -> None:
        """All recordings were dropped, or recording failed: start over, with a generator in the same state."""


class CudaGraphs:
    """CUDA graphs that share one memory pool: what a phase needs for itself is free for the phases after it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.generator = torch.Generator(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            outputs = function()
        outer.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], Any]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        place = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), place:
            outputs = function()
        return Recording(graph.replay, outputs)

    def reset(self) -> None:
        state = self.generator.get_state()
        self.generator = torch.Generator(self.device)
        self.generator.set_state(state)
        self.pool = torch.cuda.graph_pool_handle()


class GraphRunner:
    """Recorded steps by key, at most `most` of them: the one unused for longest goes first.

    buffers  where generations keep what they carry between steps, so that addresses stay from one to the next
    broken   why nothing is recorded any more: the error of a phase that could not be. None: all is well
    """

    def __init__(self, backend: Backend, most: int = 64):
        self.backend, self.most = backend, most
        self.buffers: StateBuffers = {}
        self.broken: str | None = None
        self._steps: dict[Hashable, dict[str, Recording | None]] = {}
        self._current: dict[str, Recording | None] = {}
        self._addresses: dict[Hashable, tuple] = {}

    @property
    def recorded(self) -> int:
        """How many keys have a recording."""
        return sum(any(phases.values()) for phases in self._steps.values())

    def begin(self, key: Hashable, state: dict[Hashable, list[Tensor]], generator: torch.Generator | None) -> None:
        """Open a step: phases run from now on belong to `key`. `state`, by owner: the tensors that outlive the step."""
        found = {owner: tuple((x.data_ptr(), x.shape, x.stride()) for x in tensors) for owner, tensors in state.items()}
        if any(self._addresses.get(owner, addresses) != addresses for owner, addresses in found.items()):
            self.clear()
        self._addresses.update(found)
        self._current = self._steps.pop(key, {})
        self._steps[key] = self._current  # the latest is last
        if len(self._steps) > self.most:
            del self._steps[next(iter(self._steps))]
        self.backend.generator.set_state(self._source(generator).get_state())

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(*inputs, generator=)` as a callable of the inputs that runs, records or replays it, as the open
        step has it. On a replay the inputs are ignored: they lie where they lay when it was recorded.
        """
        return lambda *inputs: self._run(phase, lambda: function(*inputs, generator=self.backend.generator))

    def _run(self, phase: str, function: Callable[[], Any]) -> Any:
        if self.broken:
            return function()
        if phase not in self._current:
            self._current[phase] = None
            return self.backend.warm_up(function)
        recording = self._current[phase]
        if recording is None:
            try:
                recording = self._current[phase] = self.backend.record(function)
            except RuntimeError as error:
                self._give_up(phase, error)
                return function()
        recording.replay()
        return recording.outputs

    def end(self, generator: torch.Generator | None) -> None:
        """Close the step: the caller's generator goes on where the recorded draws ended."""
        self._source(generator).set_state(self.backend.generator.get_state())

    def clear(self) -> None:
        """Drop every recording."""
        self._steps.clear()
        self._current = {}
        self.backend.reset()

    def _give_up(self, phase: str, error: RuntimeError) -> None:
        self.broken = f"{phase} cannot be recorded: {error}"
        warnings.warn(f"decoding goes on without graphs: {self.broken}", stacklevel=2)
        self.backend.reset()

    def _source(self, generator: torch.Generator | None) -> torch.Generator:
        if generator is not None:
            return generator
        device = self.backend.generator.device
        if device.type == "cuda":
            return torch.cuda.default_generators[device.index or 0]
        return torch.default_generator
