"""Files and directories that are either whole or absent.

Everything is written beside its place, flushed to disk, and renamed: a process killed at any moment leaves the old
content or the new one, never half of either.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """Force a file's or directory's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str | Path, write: Callable[[Path], None]) -> None:
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


def write_text(path: str | Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_directory(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Let `fill(temporary)` fill a temporary directory, then rename it to `path` (which must not exist yet)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for entry in temporary.iterdir():
        flush(entry)
    flush(temporary)
    os.rename(temporary, path)
    flush(path.parent)
