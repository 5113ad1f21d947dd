"""Files that survive a kill: whole-file writes, and JSON lines that are appended one by one.

A reader never sees half of a report (`write_whole`: temporary file, fsync, rename). A line of an answer file is on disk
before the next question starts (`append`: one line, flush, fsync); if the process ends inside a line, that line has no
newline at its end and `recover` drops it. Such a question was not finished: it is asked again.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from eagle import files


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError raised inside the file's name where it has none, as with a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        remedy = "; free space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(error.errno, f"{error.strerror or error}{remedy}", str(path)) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before. Raises OSError naming the file."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with naming(path):
        files.write_file(path, lambda temporary: temporary.write_bytes(data))


def check_writable(path: Path) -> None:
    """Raise ValueError where `path` cannot be written; called before the work whose result goes there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of every finished line. A last line without a newline is not finished and is left out.

    Raises ValueError naming the line that is not JSON.
    """
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
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
    """Claim an open file for this process until it is closed or the process ends. ValueError where another has it."""
    files.lock(file, f"{path}: another run is writing this file; wait for it, or choose another file")


def open_locked(path: Path) -> BinaryIO:
    """Open for appending, claimed by this process. ValueError where another run has it.

    Between opening and locking another process may have removed the file; the lock would then hold a file without a
    name, so the name is looked up again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), "ab")
        try:
            lock(file, path)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except ValueError:
            file.close()
            raise
        file.close()


def append(file: BinaryIO, record: Any, path: Path) -> None:
    """One line, on disk when this returns. Raises OSError naming `path`, ValueError for nan or infinity."""
    line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
    with naming(path):
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
