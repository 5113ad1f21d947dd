"""Draws and decisions in C++ on a CPU: what hsd/sampling.py and hsd/verify.py compute with tensors, in one call each.

Sums over tokens are float64 here, so a number may fall on the other side of a boundary where float32 sums would put it.
Where nothing can be compiled (hsd/native/build.py) the tensors compute everything.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from hsd.native.build import Library
from hsd.outcome import Decision
from hsd.tree import TreeBatch

LIBRARY = Library(Path(__file__).with_name("decide.cpp"))
RULES = {"token": 0, "hsd": 1, "greedy": 2}


class _Trees(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "nodes", "slots", "proposals", "columns", "vocabulary", "rule")),
        *((name, c_void_p) for name in ("tokens", "parents", "depths", "rows", "target", "d", "support", "uniforms")),
        ("stride", c_int64),
        *((name, c_void_p) for name in ("path", "accepted", "token", "expected", "stop")),
    ]


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """As `hsd.draw`."""
    probs, uniform = probs.contiguous(), uniform.double().expand(probs.shape[:-1]).contiguous()
    found = torch.empty(probs.shape[:-1], dtype=torch.int64, device="cpu")
    LIBRARY.functions.hsd_draw(
        *map(c_int64, (torch.get_num_threads(), probs.element_size())),
        c_void_p(probs.data_ptr()),
        *map(c_int64, (found.numel(), probs.shape[-1])),
        *map(c_void_p, (uniform.data_ptr(), found.data_ptr())),
    )
    return found


def decide(batch: TreeBatch, target: Tensor, proposals: Tensor | None, rule: str, uniforms: Tensor) -> Decision:
    """As `hsd.decide`, by one of `RULES`.

    target, proposals   float32 or float64, the same
    Raises ValueError where a token, a parent, a depth or a row of `proposals` is out of range.
    """
    (size, nodes), slots = batch.tokens.shape, batch.layout.depth + 1
    fields = (batch.tokens, batch.parents, batch.depths, batch.proposal_rows, target)
    read = [field.contiguous() for field in fields]
    given = [None if field is None else field.contiguous() for field in (proposals, batch.support)]
    numbers = uniforms.double()
    numbers = numbers if numbers.stride(-1) == 1 else numbers.contiguous()
    path, accepted, token = (batch.tokens.new_empty(shape) for shape in ((size, slots), size, size))
    expected, stop = target.new_empty(size), target.new_empty(size, nodes)
    rows, columns = (0, 0) if proposals is None else proposals.shape[1:]
    trees = _Trees(
        size, nodes, slots, rows, columns, target.shape[2], RULES[rule],
        *(field.data_ptr() for field in read), *(None if field is None else field.data_ptr() for field in given),
        numbers.data_ptr(), numbers.stride(0),
        *(field.data_ptr() for field in (path, accepted, token, expected, stop)),
    )  # fmt: skip
    if LIBRARY.functions.hsd_decide(c_int64(torch.get_num_threads()), c_int64(target.element_size()), byref(trees)):
        raise ValueError(
            "a token, parent, depth or proposal row of the trees is out of range: decide(..., check=True) says which"
        )
    return Decision(path, accepted, token, expected, stop)
