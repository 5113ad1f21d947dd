"""Files and directories that are either whole or absent, and JSON files read with a clear error.

Everything is written beside its place, flushed to disk, and renamed: a process killed at any moment leaves the old
content or the new one, never half of either.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, nothing stops two processes from writing the same file
    fcntl = None  # type: ignore[assignment]


def flush(path: Path) -> None:
    """Force a file's or directory's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary)` fill a temporary file, then rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8, newlines as they are): `path` holds all of it, or what it held before."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_file(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: str | Path, text: str) -> None:
    """`write_whole` of a text."""
    write_whole(path, text)


def write_json(path: str | Path, value: Any) -> None:
    """`write_whole` of a JSON document."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming a file that is missing, not JSON or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing in {str(path.parent)!r}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); the file may be cut short") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_directory(path: str | Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill(temporary)` fill a temporary directory, then rename it to `path` (which must not exist yet)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for entry in temporary.rglob("*"):
            flush(entry)
        flush(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush(path.parent)


def lock(file: BinaryIO, message: str) -> None:
    """Claim an open file for this process until it is closed or the process ends; else ValueError(message)."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(message) from error


@contextlib.contextmanager
def locked(path: str | Path, message: str) -> Iterator[None]:
    """Hold the lock file `path` (created if need be, and left there). Raises ValueError(message) where it is held."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        lock(file, message)
        yield
