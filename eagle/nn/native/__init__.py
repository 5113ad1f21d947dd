"""A few rows through linear layers, or a whole stack of decoder layers, in C++ on an x86 CPU.

`few_rows.cpp` reads every weight once, where it lies, whatever the rows up to `MAX_ROWS`: there are no copies of them.
It is plain C++17 without torch's headers: compiled once, in seconds, into a cache directory at first use (or by
`python -m eagle.nn.native`), and called through ctypes. Where that cannot be done everything goes through torch as it
would without this package, and `unavailable()` says why.

    EAGLE_NATIVE=0        never          EAGLE_NATIVE=avx2        these instructions, though the CPU had better ones
    EAGLE_NATIVE_CACHE    where the compiled library is kept; default: eagle-native in $XDG_CACHE_HOME or ~/.cache

OpenMP is the one that torch has loaded: both share one pool of threads.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = ("few_rows.cpp", "kernels.h", "amx.h")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w")
INSTRUCTIONS = {"avx2": 1, "avx512": 2, "amx": 3}
DTYPES = (torch.bfloat16, torch.float32)
MAX_ROWS = 64  # above, a product is bound by arithmetic and torch's are better
SECONDS_TO_COMPILE = 300


class Library(NamedTuple):
    """The loaded functions, and which instructions they use."""

    functions: ctypes.CDLL
    instructions: int


class Unavailable(RuntimeError):
    """Why there is no native code here; the message ends a sentence that begins with "no native code: "."""


@cache
def load() -> Library:
    """Compile if need be, load and choose the instructions. Raises `Unavailable`."""
    wish = os.environ.get("EAGLE_NATIVE", "").lower()
    if wish == "0":
        raise Unavailable("EAGLE_NATIVE=0")
    if wish not in ("", "1", *INSTRUCTIONS):
        raise ValueError(f"EAGLE_NATIVE={wish!r}: expected 0, 1, {', '.join(INSTRUCTIONS)}")
    if platform.machine().lower() not in ("x86_64", "amd64") or os.name != "posix":
        raise Unavailable(f"{platform.system()} on {platform.machine()} is not x86-64 Linux or macOS")
    try:
        functions = ctypes.CDLL(str(build()))
    except OSError as error:
        raise Unavailable(str(error)) from error
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
    """The most rows that native products are for. Torch has no fast ones in bfloat16 where there is AVX2 only."""
    return MAX_ROWS if load().instructions > INSTRUCTIONS["avx2"] else 16 * MAX_ROWS


def unavailable() -> str | None:
    """Why there is no native code here; None: there is."""
    try:
        load()
    except Unavailable as error:
        return str(error)
    return None


def build() -> Path:
    """The compiled library. Raises `Unavailable` without a compiler, OSError where the cache cannot be written."""
    here = Path(__file__).parent
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise Unavailable("there is no C++ compiler (c++, g++ or clang++; CXX names another)")
    openmp = [str(path) for path in Path(torch.__file__).parent.glob("lib/libgomp*")][:1]
    command = [*compiler.split(), *FLAGS, str(here / SOURCES[0]), *openmp]
    content = b"".join((here / name).read_bytes() for name in SOURCES) + repr(command).encode()
    path = _cache_directory() / f"few_rows-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(command, path)
    return path


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EAGLE_NATIVE_CACHE") or Path(base, "eagle-native"))


def _compile(command: list[str], path: Path) -> None:
    """To a name of its own, then renamed: processes that compile at once do not disturb each other."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", unfinished], capture_output=True, text=True, timeout=SECONDS_TO_COMPILE, check=False
        )
        if done.returncode:
            raise Unavailable(f"{command[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        os.replace(unfinished, path)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {SECONDS_TO_COMPILE} s") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)
