"""SHA-256 of contents and of files, and seeds that are made with it."""

import hashlib
from pathlib import Path


def sha256(content: bytes | str) -> str:
    """Of bytes, or of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """Of a whole file. Raises ValueError naming one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{str(path)!r}: cannot be read ({error.strerror})") from error


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits for one of many uses of a run's seed, such as (seed, question, turn)."""
    return int(sha256(repr(parts))[:16], 16) >> 1
