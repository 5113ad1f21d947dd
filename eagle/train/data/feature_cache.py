"""The target's features of the whole training set, computed once and kept on disk.

    cache/manifest.json             what the cache belongs to
    cache/features-00000.safetensors    taps.<i> [n, 3F] and last.<i> [n, F] of examples i, in the training precision

Worth it when the target costs much more than the head and the data is read several times. The size is known before
anything is computed (`estimate`) and compared with the free disk. Shards are written whole or not at all, so an
interrupted run continues with the shards that are missing.
"""

import hashlib
import shutil
from array import array
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eagle.checkpoints.load import read_json
from eagle.files import write_file, write_json
from eagle.train.data.conversations import Example, collate
from eagle.train.data.features import Features, OnlineFeatures
from eagle.train.distributed import is_spread

SHARD_TOKENS = 65536


def estimate(examples: list[Example], hidden_size: int, taps: int, dtype: torch.dtype) -> int:
    """Bytes on disk: every token has its taps and the final hidden state."""
    tokens = sum(len(example.ids) for example in examples)
    return tokens * (taps + 1) * hidden_size * dtype.itemsize


def fingerprint(examples: list[Example], target: str, taps: tuple[int, ...], dtype: torch.dtype) -> dict:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("i", example.ids).tobytes())
    return {
        "target": target,
        "taps": list(taps),
        "dtype": str(dtype),
        "examples": len(examples),
        "ids": digest.hexdigest(),
    }


def shards_of(examples: list[Example], shard_tokens: int) -> list[list[int]]:
    """Consecutive examples, about `shard_tokens` tokens to a file."""
    shards: list[list[int]] = [[]]
    filled = 0
    for i, example in enumerate(examples):
        if filled >= shard_tokens:
            shards.append([])
            filled = 0
        shards[-1].append(i)
        filled += len(example.ids)
    return shards


class CachedFeatures:
    """Features by example number, from files that `fill` wrote."""

    def __init__(
        self, examples: list[Example], directory: str | Path, target: str, taps: tuple[int, ...], dtype: torch.dtype
    ):
        self.examples = examples
        self.directory = Path(directory)
        self.dtype = dtype
        self.shards = shards_of(examples, SHARD_TOKENS)
        self.shard_of = {i: number for number, shard in enumerate(self.shards) for i in shard}
        self.manifest = {**fingerprint(examples, target, taps, dtype), "shard_tokens": SHARD_TOKENS}
        self._open: dict[int, safe_open] = {}

    def path(self, number: int) -> Path:
        return self.directory / f"features-{number:05d}.safetensors"

    def check(self, size: int) -> None:
        """The directory is empty or this cache's own, and the disk has room for what is missing."""
        path = self.directory / "manifest.json"
        if path.exists() and read_json(path) != self.manifest:
            raise ValueError(
                f"feature cache {str(self.directory)!r} belongs to another target, data set or precision; remove it or "
                "name another directory"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        there = sum(file.stat().st_size for file in self.directory.glob("features-*.safetensors"))
        free = shutil.disk_usage(self.directory).free
        if size - there > free:
            raise ValueError(
                f"feature cache {str(self.directory)!r}: {(size - there) / 1e9:.1f} GB needed, {free / 1e9:.1f} GB are "
                "free; train with features computed online (leave feature_cache out), or cut the data"
            )

    def fill(self, source: OnlineFeatures, accelerator: Accelerator) -> None:
        """Compute the shards that are missing; the processes share the work, except where the target's layers are
        spread over them and every forward needs all."""
        size = estimate(self.examples, source.target.config.hidden_size, len(source.taps), self.dtype)
        self.check(size)
        accelerator.print(f"feature cache {self.directory}: {size / 1e9:.3f} GB in {len(self.shards)} files")
        if accelerator.is_main_process:
            write_json(self.directory / "manifest.json", self.manifest)
        world, rank = accelerator.num_processes, accelerator.process_index
        missing = [number for number in range(len(self.shards)) if not self.path(number).exists()]
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        together = is_spread(source.target)
        for turn, number in enumerate(missing):
            mine = turn % world == rank
            if mine or together:
                tensors = self.compute(self.shards[number], source, accelerator)
            if mine:
                write_file(self.path(number), lambda path, tensors=tensors: save_file(tensors, path))
        accelerator.wait_for_everyone()
        lost = [self.path(number).name for number in missing if not self.path(number).exists()]
        if lost:
            raise ValueError(
                f"feature cache {str(self.directory)!r}: {lost} of other processes are not here; it must lie on a file "
                "system that all machines see"
            )

    def compute(self, shard: list[int], source: OnlineFeatures, accelerator: Accelerator) -> dict[str, Tensor]:
        tensors = {}
        for i in shard:
            batch = collate([self.examples[i]]).to(accelerator.device)
            with accelerator.autocast():
                found = source(batch)
            tensors[f"taps.{i}"] = found.taps[0].to("cpu", self.dtype)
            tensors[f"last.{i}"] = found.last[0].to("cpu", self.dtype)
        return tensors

    def read(self, name: str, i: int) -> Tensor:
        number = self.shard_of[i]
        if number not in self._open:
            self._open[number] = safe_open(self.path(number), framework="pt")
        return self._open[number].get_tensor(f"{name}.{i}")

    def __call__(self, indices: list[int], device: torch.device) -> Features:
        """Padded features of these examples, in their order."""
        return Features(
            *(
                pad_sequence([self.read(name, i) for i in indices], batch_first=True).float().to(device)
                for name in ("taps", "last")
            )
        )
