"""One process writes an output at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`, which a process that is killed releases.

    Raises ValueError where another process holds it, OSError where the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except BlockingIOError:
            mine = False
        if not mine:  # held, or removed by its holder in this moment
            raise ValueError(f"{path}: another process is writing here; wait for it, or choose another output")
        yield
        path.unlink(missing_ok=True)
