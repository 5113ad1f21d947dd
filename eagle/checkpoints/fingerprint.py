"""A fingerprint of a model's files: equal weights have equal fingerprints, wherever they lie.

    fingerprint("checkpoints/demo/target")  ->  "3f1c9a..."

Hashing an 8B model whole takes minutes; this takes milliseconds. Of every weight file go in: its name, its size, the
header (names, shapes and dtypes of all tensors) and four blocks of every tensor, spread evenly from its first byte to
its last. Weights trained further differ in every tensor, so they are noticed; a change of a few numbers inside a tensor
may not be. config.json goes in whole: it decides what the weights mean.
"""

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
BLOCK, BLOCKS = 256, 4
LONGEST_HEADER = 100_000_000  # the limit of the safetensors format


def fingerprint(directory: str | Path) -> str:
    """32 hexadecimal digits for the weights in a directory and their config.json.

    Raises ValueError when it is no directory or holds no weights, OSError for a file that cannot be read.
    """
    folder = Path(directory)
    weights = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())
    if not weights:
        raise ValueError(f"{str(directory)!r}: expected a directory with weights ({', '.join(SUFFIXES)}), found none")
    digest = hashlib.sha256()
    config = folder / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    for path in weights:
        _add_file(digest, path)
    return digest.hexdigest()[:32]


def local_directory(path: str | None) -> Path | None:
    """A directory as it is, a hub id's in the hub's cache; None where there is neither."""
    if not path:
        return None
    try:
        return Path(path) if Path(path).is_dir() else Path(snapshot_download(path, local_files_only=True))
    except (ValueError, OSError):
        return None


def weights_fingerprint(path: str | None) -> str | None:
    """The fingerprint of a directory's weights, or of a hub id's; None where there are none on this machine."""
    folder = local_directory(path)
    try:
        return None if folder is None else fingerprint(folder)
    except (ValueError, OSError):
        return None


def _add_file(digest, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"\0{path.name}\0{size}\0".encode())
    with open(path, "rb") as file:
        header = _header(file.read(8), file, size) if path.suffix == ".safetensors" else b""
        digest.update(header)
        for start, stop in _tensors(header, size):
            for place in _places(start, stop):
                file.seek(place)
                digest.update(file.read(min(BLOCK, stop - place)))


def _header(prefix: bytes, file, size: int) -> bytes:
    """The JSON header of a safetensors file; empty where the file is no such file."""
    length = int.from_bytes(prefix, "little")
    return file.read(length) if len(prefix) == 8 and length <= min(LONGEST_HEADER, size - 8) else b""


def _tensors(header: bytes, size: int) -> list[tuple[int, int]]:
    """First and last + 1 byte of every tensor; the whole file where the header does not say."""
    try:
        entries = json.loads(header)
        offsets = [entries[name]["data_offsets"] for name in sorted(entries) if name != "__metadata__"]
        base = 8 + len(header)
        found = [(base + int(start), base + int(stop)) for start, stop in offsets]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return [(0, size)]
    return found if all(base <= start <= stop <= size for start, stop in found) else [(0, size)]


def _places(start: int, stop: int) -> list[int]:
    """Where the blocks begin."""
    last = max(stop - BLOCK, start)
    return sorted({start + (last - start) * i // (BLOCKS - 1) for i in range(BLOCKS)})
