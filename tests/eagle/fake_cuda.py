"""CUDA devices that are not there: whole generations on torch's FakeTensors, with every copy, wait and address noted.

Works with builds of torch without CUDA. Tensors have shapes, dtypes and devices, no values. An operator that mixes
devices raises. What reads a value is noted with the line of the project that did it, and gets one from `Watch.oracle`.
In the place of CUDA graphs stands `FakeGraphs`, which refuses what a capture refuses, and `CheckedRunner`, which runs a
phase again at some of its replays and compares the operators with the recorded ones: their order, the numbers that come
from the host, and the addresses of all that outlives the step. What differs would be stale.

Not seen here: kernels, their numbers, the autograd engine, errors of the CUDA runtime itself.
"""

import contextlib
import ctypes
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eagle.engine.graphs import GraphRunner, Recording
from eagle.engine.session import Session
from eagle.nn import decoder, kv_cache, packed, target
from eagle.nn.head import Eagle3Head

READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
FUSED = {"scaled_dot_product_attention", "_fused_rms_norm"}  # one kernel each on a GPU, taken apart elsewhere
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"}
PHASES = ("draft", "score", "verify", "commit")
STEP = "step"  # inside a step, between its phases
RESULT = 4  # columns of a step's packed result before its tokens


class Refused(RuntimeError):
    """What a capture would refuse."""


class Seen(NamedTuple):
    """Where something was seen: the phase of the step, the line of the project, what it was."""

    phase: str
    line: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} in {self.phase or 'no step'} at {self.line}"


def line_of_project() -> str:
    frame = sys._getframe()
    while frame is not None:
        for package in ("/eagle/", "/hsd/"):
            if package in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
                return f"{package[1:]}{frame.f_code.co_filename.rpartition(package)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@functools.cache
def launches(operator: Any) -> bool:
    """Whether it launches a kernel: no view, nor one that only makes a tensor or calls others."""
    if operator.namespace != "aten" or operator.is_view or operator.overloadpacket.__name__ in NO_KERNEL:
        return False
    return not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


@functools.cache
def is_composite(operator: Any) -> bool:
    """Whether it is taken apart, and its parts are looked at."""
    return operator.namespace == "aten" and operator.overloadpacket.__name__ not in FUSED and operator._can_decompose()


def pointer(x: torch.Tensor) -> int:
    """An address: different for storages that are alive together."""
    return x.untyped_storage()._cdata + x.storage_offset() * x.element_size()


def host_number(x: torch.Tensor) -> Any:
    """The value of a number that torch made a tensor of, on the host; None where it is not known."""
    value = x.constant if isinstance(x, FakeTensor) else x
    with no_dispatch():
        return None if value is None else value.item()


class Watch(TorchDispatchMode):
    """Everything that is dispatched inside `fake_cuda`.

    reads       values looked at, by the oracle's leave           moves      copies between host and device
    stale       what a replay would not have seen change          steps      how many were done
    launches    of kernels, by phase                              accepted   draft tokens per step, by the oracle
    """

    def __init__(self, accepted: int = 1):
        super().__init__()
        self.accepted = accepted
        self.phase, self.recording = "", False
        self.trace: list[tuple] | None = None
        self._fresh: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []
        self.clear()

    def clear(self) -> None:
        self.reads: list[Seen] = []
        self.moves: list[Seen] = []
        self.stale: list[Seen] = []
        self.launches: Counter = Counter()
        self.steps = 0

    def note(self, where: list[Seen], what: str) -> None:
        where.append(Seen(self.phase, line_of_project(), what))
        if self.recording:
            raise Refused(f"{what} in {line_of_project()}")

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def faults(self) -> list[str]:
        """What steps on a GPU must not do: wait before their end or more than once, copy inside a phase, be stale."""
        found = [str(seen) for seen in (*self.reads, *self.moves) if seen.phase in PHASES]
        found += [f"stale: {seen}" for seen in self.stale]
        reads, moves = ([seen for seen in what if seen.phase == STEP] for what in (self.reads, self.moves))
        found += [] if len(reads) == self.steps else [f"{self.steps} steps read: {[*map(str, reads)]}"]
        found += [] if len(moves) == self.steps else [f"{self.steps} steps copied: {[*map(str, moves)]}"]
        return found

    def oracle(self, x: torch.Tensor) -> Any:
        """Values of a tensor that has none: a step's packed result, else True and small numbers."""

        def filled(shape: tuple[int, ...]) -> Any:
            return [filled(shape[1:]) for _ in range(shape[0])] if shape else x.dtype == torch.bool or 3

        if x.dtype == torch.float64 and x.dim() == 2:
            tokens = [5.0] * (x.shape[1] - RESULT)
            return [[float(min(self.accepted, len(tokens) - 1)), 0.5, 1.0, 0.0, *tokens] for _ in range(len(x))]
        return filled(tuple(x.shape))

    @contextlib.contextmanager
    def tracing(self) -> Iterator[list[tuple]]:
        """The operators inside, as a list that can be compared with another one."""
        self.trace, self._fresh, self._kept = [], {}, []
        try:
            yield self.trace
        finally:
            self.trace, self._kept = None, []

    def described(self, x: Any) -> str:
        if not isinstance(x, torch.Tensor):
            return str(x)
        if x.device.type == "cpu" and not x.dim():
            return f"{x.dtype} of the host: {host_number(x)}"
        cell = x.untyped_storage()._cdata
        place = f"new {self._fresh[cell]}" if cell in self._fresh else f"at {cell}"
        return f"{place} + {x.storage_offset()} {tuple(x.shape)} {x.stride()} {x.dtype}"

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operator.overloadpacket.__name__
        if name in READS:
            self.note(self.reads, name)
            return (
                self.oracle(args[0].view(())) if name in ("_local_scalar_dense", "item") else self._sized(name, args[0])
            )
        if is_composite(operator):
            with self:  # in inference mode composite operators arrive whole; their parts may read, too
                out = operator.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if "index" in name and len(args) > 1 and isinstance(args[1], list | tuple):
            args = (args[0], self._positions(name, args[0], args[1]), *args[2:])
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        words = [self.described(x) for x in tree_leaves((args, kwargs))] if self.trace is not None else []
        cells = {x.untyped_storage()._cdata for x in inputs}
        out = operator(*args, **kwargs)
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_") and {x.device.type for x in (*inputs, *results)} == {"cpu", "cuda"}:
            self.note(self.moves, f"{name} between host and device")
        if self.trace is not None:
            self._number(results, cells)
            self.trace.append((line_of_project(), str(operator), *words))
        self.launches[self.phase] += launches(operator) and any(x.device.type == "cuda" for x in (*inputs, *results))
        return out

    def _number(self, results: list[torch.Tensor], known: set[int]) -> None:
        """New storages get numbers in their order; no address is used twice while these are kept."""
        for x in results:
            cell = x.untyped_storage()._cdata
            if cell not in known and cell not in self._fresh:
                self._fresh[cell] = len(self._fresh)
                self._kept.append(x)

    def _sized(self, name: str, x: torch.Tensor) -> Any:
        """What depends on values in its shape, for half of them."""
        if name == "nonzero":
            return x.new_empty((max(x.numel() // 2, 1), x.dim()), dtype=torch.int64)
        return tuple(x.new_empty(2, dtype=torch.int64) for _ in range(3)) if name == "_unique2" else True

    def _positions(self, name: str, x: torch.Tensor, indices: Any) -> list:
        """Masks among indices as positions of half their entries."""
        masks = [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if masks:
            self.note(self.reads, f"{name} by a mask")
        if any(i is not None and i.device != x.device for i in indices):
            self.note(self.moves, f"{name} by indices on another device")
        found: list = []
        for i in indices:
            masked = i is not None and i.dtype in (torch.bool, torch.uint8)
            found += [i.new_empty(max(i.numel() // 2, 1), dtype=torch.int64) for _ in i.shape] if masked else [i]
        return found


class FromHost(TorchFunctionMode):
    """torch.tensor with values of the host is a copy to the device."""

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.tensor:
            return function(*args, **kwargs)
        device = torch.device(kwargs.pop("device", None) or torch.get_default_device())
        value = function(*args, device="cpu", **kwargs)
        if device.type == "cpu":
            return value
        self.watch.note(self.watch.moves, "torch.tensor of host values")
        return torch.empty(value.shape, dtype=value.dtype, device=device)


# --- in the place of CUDA graphs --------------------------------------------------------------------------------------


class FakeGraphs:
    """`eagle.engine.graphs.Backend`; `log` has what was asked of it."""

    def __init__(self, watch: Watch):
        self.watch = watch
        self.log: list[str] = []

    def warm_up(self, function):
        self.log.append("warm")
        return function()

    def record(self, function):
        self.log.append("record")
        self.watch.recording = True
        try:
            outputs = function()
        finally:
            self.watch.recording = False
        return Recording(lambda: self.log.append("replay"), outputs)

    def reset(self):
        self.log.append("reset")


class CheckedRunner(GraphRunner):
    """Runs a phase again at its first replay and at every 16th, and compares."""

    def __init__(self, watch: Watch):
        super().__init__(FakeGraphs(watch))
        self.watch = watch
        self._traces: dict[int, list] = {}
        self._replays: Counter = Counter()

    @property
    def log(self) -> Counter:
        """How often the backend was asked for what."""
        return Counter(self.backend.log)

    def run(self, phase, function):
        known = self._current.get(phase)
        if self.broken or phase not in self._current:
            return super().run(phase, function)
        if known is None:
            with self.watch.tracing() as trace:
                outputs = super().run(phase, function)
            if phase in self._current:  # else recording it failed
                self._traces[id(self._current[phase])] = trace
            return outputs
        self._replays[id(known)] += 1
        if self._replays[id(known)] % 16 == 1:
            with self.watch.tracing() as again, self._ancestors_unknown(phase):
                function()
            self._compare(phase, self._traces[id(known)], again)
        return super().run(phase, function)

    @contextlib.contextmanager
    def _ancestors_unknown(self, phase: str) -> Iterator[None]:
        """A tree keeps its ancestors when scoring asks for them first: scoring again must compute them again."""
        drafted = self._current["draft"]
        fields = vars(drafted.outputs[0]) if drafted is not None and phase == "score" else {}
        kept = fields.pop("_ancestors", None)
        yield
        if kept is not None:
            fields["_ancestors"] = kept

    def _compare(self, phase: str, recorded: list, again: list) -> None:
        if again == recorded:
            return
        pairs = [pair for pair in zip(recorded, again) if pair[0] != pair[1]]
        old, new = pairs[0] if pairs else (f"{len(recorded)} operators", f"{len(again)}")
        self.watch.stale.append(Seen(phase, str(old[0]), f"recorded {old}, now {new}"))


# --- the place itself -------------------------------------------------------------------------------------------------


def allow_cuda_guards() -> None:
    """A build without CUDA has no device guard for it, which indexing asks for: lend it the one of "meta"."""
    if torch.backends.cuda.is_built():
        return  # FakeTensorMode sees to it
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # c10::DeviceType
    guards[cuda] = guards[cuda] or guards[meta]


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """(owner, name, value) for the time of the block."""
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            delattr(owner, name) if value is None else setattr(owner, name, value)


def with_phases(watch: Watch) -> list[tuple[Any, str, Any]]:
    """A session that tells the watch where it is."""
    step, phase, remove = Session.step, Session.phase, Session.remove

    def watched_step(session, *args):
        with watch.inside(STEP):
            watch.steps += bool(session.rows)
            return step(session, *args)

    def watched_phase(session, name, function):
        with watch.inside(name):
            return phase(session, name, function)

    def watched_remove(session, *args):
        with watch.inside(""):
            return remove(session, *args)

    return [(Session, "step", watched_step), (Session, "phase", watched_phase), (Session, "remove", watched_remove)]


def known(model: Any) -> str | None:
    """`eagle.nn.decoder.known` for models of fake parameters, whose type is not `nn.Parameter`."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "it has hooks"
    reason = decoder._layers_differ(model)
    return reason or (None if model.config.model_type in decoder.FAMILIES else "another family")


@contextlib.contextmanager
def fake_cuda(watch: Watch, granule: int = 32) -> Iterator[None]:
    """Inside, tensors are fake, on any CUDA device, and `watch` sees every operator. granule: of attention windows."""

    def tolist(x):
        if x.device.type == "cuda":
            watch.note(watch.reads, "tolist")
        return watch.oracle(x)

    version = lambda weight: (pointer(weight), 0)
    fits = lambda needed, device, what: None
    allow_cuda_guards()
    with (
        replaced(
            (FakeTensor, "data_ptr", pointer),
            (FakeTensor, "tolist", tolist),
            (packed, "version_of", version),
            (packed, "copies_fit", lambda weights: True),
            (decoder, "copies_fit", lambda weights: True),
            (target, "known", known),
            (kv_cache, "check_fits", fits),
            (kv_cache, "SMALLEST", {"cpu": 64, "cuda": granule}),
            (Eagle3Head, "to", lambda head, *where: head),  # made where it is wanted; fake parameters cannot be moved
            *with_phases(watch),
        ),
        FakeTensorMode(allow_non_fake_inputs=True),
        watch,
        FromHost(watch),
        torch.inference_mode(),
    ):
        yield


@contextlib.contextmanager
def made_on(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
