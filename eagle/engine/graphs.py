"""The phases of a step, recorded once per key and replayed: on a GPU a step costs its kernels, not its Python.

    a key is seen for the first time     its phases run as they are (CUDA: on a side stream, where libraries warm up)
                  the second time        each phase is recorded, then replayed
                  from then on           replayed

A recording has addresses and host values baked in. So the key holds every host value that a step depends on (plan,
batch, attention windows); what outlives a step lies in tensors that are written in place, and when one of those was
allocated anew (a longer request) all recordings are dropped. What one phase gives the next lies in the recording.

Random numbers are among these tensors: the host fills them before the step.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from eagle.drafters import CausalLMDrafter, Drafter
from eagle.engine.distributions import Sampling
from eagle.nn.fused_head import LENGTH_DEPENDENT_ROPE
from eagle.nn.target import CachedLM


class Recording(NamedTuple):
    """`replay` does the recorded work again; `outputs` (the same tensors every time) then hold its results."""

    replay: Callable[[], None]
    outputs: Any


class Backend(Protocol):
    """What records."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call a function that will be recorded next time."""

    def record(self, function: Callable[[], Any]) -> Recording:
        """Record without doing the work. RuntimeError when the function does what cannot be recorded."""

    def reset(self) -> None:
        """All recordings were dropped, or recording failed: start over."""


class CudaGraphs:
    """CUDA graphs that share one memory pool: what a phase needs for itself is free for the phases after it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            outputs = function()
        outer.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], Any]) -> Recording:
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        place = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        try:
            # A capture leaves tensors in torch's own generator, which other people's graphs use outside inference mode.
            with torch.inference_mode(False), torch.cuda.device(self.device), place, torch.inference_mode():
                outputs = function()
        except RuntimeError as error:
            torch.cuda.set_stream(outer)  # where the end of a capture fails, its stream is never left
            raise RuntimeError(str(error.__context__ or error)) from error  # the context is why it failed
        return Recording(graph.replay, outputs)

    def reset(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()


class GraphRunner:
    """Recorded steps by key, at most `most` of them: the one unused for longest goes first.

    broken   why nothing is recorded any more: the error of a phase that could not be. None: all is well
    """

    def __init__(self, backend: Backend, most: int = 64):
        self.backend, self.most = backend, most
        self.broken: str | None = None
        self._steps: dict[Hashable, dict[str, Recording | None]] = {}
        self._current: dict[str, Recording | None] = {}
        self._addresses: dict[Hashable, tuple] = {}

    @property
    def recorded(self) -> int:
        """How many keys have a recording."""
        return sum(any(phases.values()) for phases in self._steps.values())

    def begin(self, key: Hashable, state: Mapping[Hashable, list[Tensor]]) -> None:
        """Open a step: phases run from now on belong to `key`. `state`, by owner: the tensors that outlive the step."""
        found = {owner: tuple((x.data_ptr(), x.shape, x.stride()) for x in tensors) for owner, tensors in state.items()}
        if any(self._addresses.get(owner, addresses) != addresses for owner, addresses in found.items()):
            self.clear()
        self._addresses.update(found)
        self._current = self._steps.pop(key, {})
        self._steps[key] = self._current  # the latest is last
        if len(self._steps) > self.most:
            del self._steps[next(iter(self._steps))]

    def run(self, phase: str, function: Callable[[], Any]) -> Any:
        """Run, record or replay a phase of the open step. On a replay what the function would take from Python is
        ignored: it lies where it lay when it was recorded.
        """
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

    def clear(self) -> None:
        """Drop every recording."""
        self._steps.clear()
        self._current = {}
        self.backend.reset()

    def _give_up(self, phase: str, error: RuntimeError) -> None:
        self.broken = f"{phase} cannot be recorded: {error}"
        warnings.warn(f"decoding goes on without graphs: {self.broken}", stacklevel=2)
        self.clear()


def graph_blocker(target: CachedLM, drafter: Drafter | None, sampling: Sampling) -> str | None:
    """Why steps cannot be recorded, in words, or None where a step does nothing that a CUDA graph cannot hold."""
    if sampling.needs_prefix:
        penalty = f"repetition_penalty={sampling.target.repetition_penalty}"
        return f"{'a logits_processor' if sampling.processors else penalty} looks at tokens that are on the host"
    models = [target, drafter.lm] if isinstance(drafter, CausalLMDrafter) else [target]
    devices = {device for model in models for device in model.layer_devices} | {target.device}
    devices |= set() if drafter is None else {drafter.device}
    if len(devices) > 1:
        return f"the models are spread over {', '.join(sorted(map(str, devices)))}"
    return next((reason for reason in map(_waits, models) if reason), None)


def _waits(model: CachedLM) -> str | None:
    """Why the forward of this model waits for the device, if it does."""
    config = model.config
    if any(weight.is_meta for weight in model.model.parameters()):
        return "weights that are offloaded are fetched in every forward"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        return f"rotary scaling {rope!r} asks the host how long the text is"
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    how = getattr(config, "_experts_implementation", None) or "eager"
    if experts and how == "eager":
        return "its experts run one after the other, as the host decides; load with experts_implementation='grouped_mm'"
    return None
