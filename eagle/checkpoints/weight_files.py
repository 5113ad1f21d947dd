"""The weight files of a checkpoint directory: which they are, whether they are whole, and their tensors.

Safetensors and `torch.save` files, single or sharded with an index. A pickle is opened with weights_only=True: code in
it is never executed. Every failure is a ValueError that names the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from eagle.files import read_json

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
HEADER_BYTES = 8  # of a safetensors file: the length of the JSON header that follows


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the tensors; safetensors wins over pickle, an index over a single file."""
    for stem, suffix in KINDS:
        index = directory / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return files_of_index(index)
        single = directory / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
    raise ValueError("expected model.safetensors or pytorch_model.bin, found neither")


def files_of_index(index: Path) -> list[Path]:
    """The files that an index names; they must lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is {weight_map!r}; expected the file of every tensor")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ValueError(f"{index}: weight_map names {name!r} for {tensor}; expected the name of a file beside it")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def check_whole(path: Path) -> None:
    """ValueError for a weight file that is missing, a Git LFS pointer, or a safetensors file that is cut short."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; the index beside it names it")
    with open(path, "rb") as file:
        start = file.read(200)
    if start.startswith(LFS_POINTER):
        size = start.partition(b"size ")[2].split(b"\n")[0].decode(errors="replace")
        raise ValueError(f"{path}: a Git LFS pointer, not the weights ({size or '?'} bytes); run `git lfs pull`")
    if path.suffix == ".safetensors":
        check_safetensors_size(path)


def check_safetensors_size(path: Path) -> None:
    """ValueError unless the file is as long as its header says."""
    found = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(HEADER_BYTES), "little")
        if length > found - HEADER_BYTES:
            raise ValueError(f"{path}: cannot be read as tensors; its {found} bytes end inside the header")
        try:
            entries = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path}: cannot be read as tensors; it has no safetensors header") from error
    expected = HEADER_BYTES + length + end
    if found != expected:
        raise ValueError(
            f"{path}: {found} bytes, expected {expected} from its header; it is cut short or damaged, get it again"
        )


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one file. Raises ValueError naming it."""
    check_whole(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own; torch's text advises to switch its protection off
        raise ValueError(
            f"{path}: cannot be read as tensors ({type(error).__name__}); it may be cut short, no checkpoint, or a "
            "pickle with code in it, which is never executed"
        ) from error


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, under the names they have on disk."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(directory):
        loaded = read_file(path)
        if not isinstance(loaded, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
        ):
            raise ValueError(f"{path}: expected a flat dictionary of tensors")
        tensors.update(loaded)
    return tensors


def check_local(path_or_hub_id: str | Path) -> None:
    """Check the config and the weight files of a target that is a local directory.

    A hub id, and a directory whose weights have other names (GGUF, variants), are left to `transformers`.
    Raises ValueError naming the file that is missing, cut short or a Git LFS pointer.
    """
    directory = Path(path_or_hub_id)
    names = [f"{stem}.{suffix}{index}" for stem, suffix in KINDS for index in ("", ".index.json")]
    if not any((directory / name).is_file() for name in names):
        return
    try:
        read_json(directory / "config.json")
        for path in weight_files(directory):
            check_whole(path)
    except ValueError as error:
        raise ValueError(f"target {str(path_or_hub_id)!r}: {error}") from error
