"""Plain C++ files as libraries: compiled once, in seconds, into a cache directory, loaded through ctypes.

    EAGLE_NATIVE=0        no native code
    EAGLE_NATIVE_CACHE    where compiled libraries are kept; default: eagle-native in $XDG_CACHE_HOME or ~/.cache
    CXX                   the compiler; default: the first of c++, g++ and clang++

OpenMP is the one that torch has loaded: all share one pool of threads.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w")
SECONDS_TO_COMPILE = 300


class Unavailable(RuntimeError):
    """Why there is no native code here; the message ends a sentence that begins with "no native code: "."""


class Library:
    """Functions on probabilities, from C++ files (see `build`), compiled and loaded when first asked for."""

    def __init__(self, *sources: Path) -> None:
        self.sources = sources

    @cached_property
    def functions(self) -> ctypes.CDLL:
        """The loaded library. Raises `Unavailable`."""
        return load(self.sources)

    @cached_property
    def unavailable(self) -> str | None:
        """Why there is none; None: there is."""
        try:
            self.functions  # noqa: B018
        except Unavailable as error:
            return str(error)
        return None

    @property
    def version(self) -> str:
        """A name of the code that runs here, or why there is none."""
        return self.unavailable or Path(self.functions._name).stem  # noqa: SLF001

    def reads(self, probs: Tensor, *others: Tensor) -> bool:
        """Whether the functions can read probabilities and other tensors, and are there."""
        plain = all(type(tensor) is Tensor and tensor.is_cpu for tensor in (probs, *others))
        return plain and probs.dtype in DTYPES and self.unavailable is None


def load(sources: Sequence[Path]) -> ctypes.CDLL:
    """The functions of these files (see `build`). Raises `Unavailable`."""
    try:
        return ctypes.CDLL(str(build(sources)))
    except OSError as error:
        raise Unavailable(str(error)) from error


def build(sources: Sequence[Path]) -> Path:
    """The library compiled from the first of these files; the others are what it includes.

    Raises `Unavailable` without a compiler or where it is not wanted, OSError where the cache cannot be written.
    """
    if os.environ.get("EAGLE_NATIVE") == "0":
        raise Unavailable("EAGLE_NATIVE=0")
    if os.name != "posix":
        raise Unavailable("it is built on Linux and macOS only")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise Unavailable("there is no C++ compiler (c++, g++ or clang++; CXX names another)")
    openmp = [str(path) for path in Path(torch.__file__).parent.glob("lib/libgomp*")][:1]
    command = [*compiler.split(), *FLAGS, str(sources[0]), *openmp]
    content = b"".join(path.read_bytes() for path in sources) + repr(command).encode()
    path = cache_directory() / f"{sources[0].stem}-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(command, path)
    return path


def cache_directory() -> Path:
    """Where compiled libraries are kept. Raises `Unavailable` for a user without a home."""
    if given := os.environ.get("EAGLE_NATIVE_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "eagle-native")
    except RuntimeError as error:  # a user without a home
        raise Unavailable(f"{error}; EAGLE_NATIVE_CACHE names a directory for the compiled files") from error


def _compile(command: list[str], path: Path) -> None:
    """To a name of its own, then renamed: processes that compile at once do not disturb each other."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", unfinished],
            capture_output=True, text=True, errors="replace", timeout=SECONDS_TO_COMPILE, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"{command[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        os.replace(unfinished, path)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {SECONDS_TO_COMPILE} s") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)
