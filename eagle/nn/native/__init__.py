"""A few rows through linear layers, or a whole stack of decoder layers, in C++ on an x86 CPU.

`few_rows.cpp` reads every weight once, where it lies, for any number of rows up to `max_rows()`; it keeps no copies. It
is plain C++17 without torch's headers: compiled once, in seconds, into a cache directory at first use (or by
`python -m eagle.native`), and called through ctypes (hsd/native/build.py). Where that cannot be done everything goes
through torch as it would without this package, and `unavailable()` says why.

    EAGLE_NATIVE=0        never          EAGLE_NATIVE=avx2        these instructions, though the CPU had better ones
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from hsd.native.build import Unavailable
from hsd.native.build import build as build_from
from hsd.native.build import load as load_from

SOURCES = ("few_rows.cpp", "kernels.h", "amx.h")
INSTRUCTIONS = {"avx2": 1, "avx512": 2, "amx": 3}
DTYPES = (torch.bfloat16, torch.float32)
# The most rows that native products are for: above, they are bound by arithmetic and torch's are better. Where there is
# AVX2 only, torch has no fast ones in bfloat16.
MAX_ROWS = {"avx2": 1024, "avx512": 64, "amx": 256}


class Library(NamedTuple):
    """The loaded functions, and which instructions they use."""

    functions: ctypes.CDLL
    instructions: int


@cache
def load() -> Library:
    """Compile if need be, load and choose the instructions. Raises `Unavailable`."""
    wish = os.environ.get("EAGLE_NATIVE", "").lower()
    if wish not in ("", "0", "1", *INSTRUCTIONS):
        raise ValueError(f"EAGLE_NATIVE={wish!r}: expected 0, 1, {', '.join(INSTRUCTIONS)}")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise Unavailable(f"{platform.machine()} is not x86-64")
    functions = load_from(_sources())
    functions.eagle_instructions.restype = ctypes.c_int64
    found = functions.eagle_instructions()
    wanted = INSTRUCTIONS.get(wish, found)
    if not 0 < wanted <= found:
        raise Unavailable(f"this CPU has no {wish or 'AVX2'}")
    return Library(functions, wanted)


def best() -> int:
    """The best instructions that this CPU has, whatever EAGLE_NATIVE says. Raises `Unavailable`."""
    return load().functions.eagle_instructions()


def max_rows() -> int:
    """The most rows that native products are for, with the instructions that are used."""
    return next(MAX_ROWS[name] for name, number in INSTRUCTIONS.items() if number == load().instructions)


def unavailable() -> str | None:
    """Why there is no native code here; None: there is."""
    try:
        load()
    except Unavailable as error:
        return str(error)
    return None


def build() -> Path:
    """The compiled library. Raises `Unavailable` without a compiler, OSError where the cache cannot be written."""
    return build_from(_sources())


def _sources() -> list[Path]:
    return [Path(__file__).with_name(name) for name in SOURCES]
