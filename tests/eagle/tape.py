"""A stand-in for CUDA graphs on any device: operators on a tape, with the addresses and host values they had.

Replaying runs the same operators on the same tensors; no Python of the recorded function runs again. So, as with a
CUDA graph, what a function took from the host when it was recorded stays what it was, and a tensor that is not written
in place is never seen. Recording does the work, which a CUDA graph does not: the first replay is left out for that.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eagle.engine.graphs import Recording

WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
HOST_METHODS = {
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.nonzero,
    torch.tensor,
}


class HostWait(RuntimeError):
    """The host would wait for the device, or hand it values, in the middle of a step."""


class NoWaits(TorchFunctionMode):
    """Python-level calls that read values on the host (`tolist`) or bring some from it (`torch.tensor`) raise."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in HOST_METHODS:
            raise HostWait(f"{function.__name__} inside a step")
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Every operator that runs, with its arguments and results; those that wait for the device raise."""

    def __init__(self):
        super().__init__()
        self.tape: list[tuple] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in WAITS or name in {"index", "index_put", "index_put_"} and _by_mask(args[1]):
            raise HostWait(f"{operator} inside a step")
        results = operator(*args, **(kwargs or {}))
        self.tape.append((operator, args, kwargs or {}, results))
        return results


def _by_mask(indices) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def play(tape: list[tuple]) -> None:
    """Run the operators again; what they make anew goes where it went when it was recorded."""
    for operator, args, kwargs, results in tape:
        fresh = tree_leaves(operator(*args, **kwargs))
        for old, new in zip(tree_leaves(results), fresh, strict=True):
            if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                old.copy_(new)


class Tape:
    """`eagle.engine.graphs.Backend` on a CPU. `log` has what was asked of it."""

    def __init__(self):
        self.log: list[str] = []

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.log.append("warm")
        return function()

    def record(self, function: Callable[[], Any]) -> Recording:
        self.log.append("record")
        with NoWaits(), Operators() as operators:
            outputs = function()
        done = [False]

        def replay() -> None:
            self.log.append("replay")
            if done[0]:
                play(operators.tape)
            done[0] = True

        return Recording(replay, outputs)

    def reset(self) -> None:
        self.log.append("reset")
