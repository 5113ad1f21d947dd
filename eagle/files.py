"""Files and directories that are either whole or absent, files that one process claims, JSON read with a clear error.

Everything is written beside its place, flushed to disk, and renamed: a process killed at any moment leaves the old
content or the new one, never half of either. A full disk is an OSError that names the file.
"""

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, nothing stops two processes from writing the same file
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an OSError raised inside the file's name where it has none, as with a full disk.

    safetensors and torch raise errors of their own where a file cannot be written; they become an OSError.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{path}: cannot be written ({reason})") from error
    except OSError as error:
        if error.filename is not None or error.errno is None:  # it names the file already
            raise
        remedy = "; free space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OSError(error.errno, f"{error.strerror or error}{remedy}", str(path)) from error


def flush(path: Path) -> None:
    """Force a file's or directory's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let `write(temporary)` fill a temporary file, then rename it to `path`.

    Raises OSError naming the file, ValueError where a device, pipe or directory of that name would be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: there is something other than a file; choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


def check_writable(path: str | Path) -> None:
    """Raise ValueError where `path` cannot be written; called before the work whose result goes there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "there is something other than a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8, newlines as they are): `path` holds all of it, or what it held before."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_file(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: str | Path, value: Any) -> None:
    """`write_whole` of a JSON document."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document, UTF-8 where it is bytes. Raises ValueError, also where it nests too deep."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming a file that is missing, not JSON or not an object."""
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing in {str(path.parent)!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); the file may be cut short") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_directory(path: str | Path, fill: Callable[[Path], Any]) -> None:
    """Let `fill(temporary)` fill a temporary directory, then rename it to `path` (which must not exist yet)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with naming(path):
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
    """Claim an open file for this process until it is closed or the process ends; else ValueError(message).

    Some file systems have no locks: that is said, and the file is written without one.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ValueError(message) from error
        warnings.warn(
            f"{getattr(file, 'name', 'a file')}: cannot be locked ({error.strerror}); let no second process write it",
            stacklevel=2,
        )


def open_locked(path: str | Path, message: str) -> BinaryIO:
    """Open for appending, claimed by this process. Raises ValueError(message) where another has it.

    Between opening and locking another process may have removed the file; the lock would then hold a file without a
    name, so the name is looked up again. Nothing is buffered: on a full disk closing could not write what is left, and
    its error would hide the first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), "ab", buffering=0)
        try:
            lock(file, message)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except ValueError:
            file.close()
            raise
        file.close()


@contextlib.contextmanager
def locked(path: str | Path, message: str) -> Iterator[None]:
    """Hold the lock file `path`, which is removed afterwards. Raises ValueError(message) where another has it."""
    file = open_locked(path, message)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        file.close()


def sole_writer(output: str | Path) -> contextlib.AbstractContextManager[None]:
    """Claim a file or directory that is about to be written over some time, by a lock file beside it.

    Raises ValueError naming `output` where another process writes it.
    """
    path = Path(output)
    if not path.name:
        raise ValueError(f"output {str(output)!r}: expected the name of a file or directory")
    return locked(
        path.with_name(f".{path.name}.lock"),
        f"{output}: another process is writing it; wait until it ends, or choose another output",
    )
