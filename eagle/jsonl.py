"""JSON lines: files that a run appends to and goes on with after a kill, and files that people bring.

A line of a run is on disk before its work goes on (`append`: one line, fsync); if the process ends inside a line, that
line has no newline at its end, `lines` leaves it out and `recover` drops it: what it held is done again.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from eagle import files


def lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of every finished line. A last line without a newline is not finished and is left out.

    Raises ValueError naming the line that is not JSON.
    """
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            yield number, files.parse_json(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); expected one record per line. Remove the line and run "
                "again: what it held is done again"
            ) from error


def objects(content: Iterable[bytes], source: str, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`SOURCE, line N`, object) of every line that is not blank in a file that somebody brings; `what` it holds.

    Raises ValueError naming the line that is not UTF-8, not JSON or not an object.
    """
    for number, line in enumerate(content, start=1):
        line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
        if not line:
            continue
        place = f"{source}, line {number}"
        try:
            value = files.parse_json(line)
        except UnicodeDecodeError as error:
            wrong = f"byte {error.object[error.start]:#04x} at place {error.start}"
            raise ValueError(f"{place}: not UTF-8 ({wrong}); save it as UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{place}: not JSON ({error}); expected one JSON object per line") from error
        if not isinstance(value, dict):
            raise ValueError(
                f"{place}: {line[:40].decode('utf-8', 'replace')!r} is not a JSON object with {what} in it"
            )
        yield place, value


def recover(path: Path) -> None:
    """Cut a torn last line off the file, if there is one."""
    content = path.read_bytes()
    finished = content.rfind(b"\n") + 1
    if finished < len(content):
        with open(path, "r+b") as file:
            file.truncate(finished)
            os.fsync(file.fileno())


def open_locked(path: Path) -> BinaryIO:
    """Open for appending, claimed by this process. ValueError where another run has it, or where it is no file."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: there is something other than a file; choose another place")
    return files.open_locked(path, f"{path}: another run is writing this file; wait for it, or choose another file")


def append(file: BinaryIO, record: Any, path: Path) -> None:
    """One line, on disk when this returns. Raises OSError naming `path`, ValueError for nan or infinity."""
    line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
    with files.naming(path):
        left = memoryview(line)
        while left:  # a disk that fills up takes a part of it
            left = left[file.write(left) :]
        os.fsync(file.fileno())


@contextlib.contextmanager
def measured(
    path: Path, head: dict[str, Any], settings: Callable[[dict[str, Any]], Any] = lambda head: head
) -> Iterator[tuple[BinaryIO, list[Any]]]:
    """A file of measurements whose first line is `head`, claimed by this process, and the records behind that line.

    settings    the part of the head that a resumed run must agree on

    Raises ValueError where another run has the file, or where it was written with other settings.
    """
    with contextlib.closing(open_locked(path)) as file:
        recover(path)
        found, *records = [value for _, value in lines(path)] or [None]
        if found is None:
            append(file, head, path)
        elif settings(found) != settings(head):
            raise ValueError(f"{path} was measured with other settings ({found}); choose another --output")
        yield file, records
