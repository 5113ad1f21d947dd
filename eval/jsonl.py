"""Files that survive a kill: whole-file writes, and JSON lines that are appended one by one.

A reader never sees half of a report (`write_whole`: temporary file, fsync, rename). A record of an answer file is on
disk before the next question starts (`append`: one line, flush, fsync); if the process dies inside a line, that line
has no newline at its end and `recover` drops it. Such a question was not finished: it is asked again.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from eagle.files import write_file

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, nothing stops two runs from writing the same file
    fcntl = None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_file(path, lambda temporary: temporary.write_bytes(data))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The finished records of a JSON-lines file. A last line without a newline is not finished and is left out."""
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); expected one record per line. Remove the line and run "
                "again: its question will be answered again"
            ) from error


def recover(path: Path) -> None:
    """Cut a torn last line off the file, if there is one."""
    content = path.read_bytes()
    finished = content.rfind(b"\n") + 1
    if finished < len(content):
        with open(path, "r+b") as file:
            file.truncate(finished)
            os.fsync(file.fileno())


def lock(file: BinaryIO, path: Path) -> None:
    """Claim an open answer file for this process until it is closed or the process ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"{path}: another run is writing this file; wait for it, or choose another file") from error


def append(file: BinaryIO, record: dict[str, Any]) -> None:
    """One record, on disk when this returns."""
    file.write(json.dumps(record, allow_nan=False).encode("ascii") + b"\n")
    file.flush()
    os.fsync(file.fileno())
